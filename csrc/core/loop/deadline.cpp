#include "deadline.h"

#include <cstdint>
#include <string>

namespace stepfuse {

namespace {

std::string three_decimals(double value) {
  std::string text = std::to_string(value);
  return text.substr(0, text.find('.') + 4);
}

}  // namespace

DeadlineError::DeadlineError(double left, double needed, double passes)
    : std::runtime_error("the deadline cannot be met: it is " + three_decimals(left) + " s away, the estimate is " +
                         three_decimals(needed) + " s, with " + std::to_string(static_cast<std::int64_t>(passes)) +
                         " network passes to be computed first") {}

void RecentForwards::add(int forward_rows, double forward_seconds) {
  constexpr double kNewest = 0.1;  // weight of the newest forward
  const double weight = known() ? kNewest : 1;
  seconds_ += weight * (forward_seconds - seconds_);
  rows_ += weight * (forward_rows - rows_);
}

}  // namespace stepfuse
