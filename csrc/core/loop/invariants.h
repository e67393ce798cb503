// What must hold between any two iterations of a loop.
#pragma once

#include <string>
#include <vector>

#include "loop.h"

namespace stepfuse {

// Every violation found, in words; empty if all is well.
std::vector<std::string> violations(const Loop& loop);

}  // namespace stepfuse
