// What must hold between any two iterations of a loop.
#pragma once

#include <string>
#include <vector>

#include "loop.h"

namespace stepfuse {

// A description of every violation found; empty if there is none.
std::vector<std::string> violations(const Loop& loop);

}  // namespace stepfuse
