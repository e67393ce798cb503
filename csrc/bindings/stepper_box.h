// How a stepper gets from where it is made to the server that owns it.
#pragma once

#include <memory>

#include "../core/loop/stepper.h"

namespace stepfuse {

struct StepperBox {
  std::unique_ptr<Stepper> stepper;  // null once a server has it
};

}  // namespace stepfuse
