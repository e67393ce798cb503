// A stepper that Python holds until one server takes it.
#pragma once

#include <memory>
#include <stdexcept>
#include <utility>

#include "../core/loop/stepper.h"

namespace stepfuse {

class StepperBox {
 public:
  explicit StepperBox(std::shared_ptr<Stepper> stepper) : stepper_(std::move(stepper)) {}

  // Throws std::invalid_argument if a server has it already.
  std::shared_ptr<Stepper> take() {
    if (std::exchange(taken_, true)) throw std::invalid_argument("a stepper belongs to one server");
    return stepper_;
  }

 private:
  std::shared_ptr<Stepper> stepper_;
  bool taken_ = false;
};

}  // namespace stepfuse
