// A deadline that cannot be met is refused at submission: what such a refusal is estimated from.
#pragma once

#include <stdexcept>

namespace stepfuse {

// Thrown by a submission whose deadline the estimate exceeds.
struct DeadlineError : std::runtime_error {
  // `left`: seconds to the deadline; `needed`: seconds estimated; `passes`: network passes to be computed before.
  DeadlineError(double left, double needed, double passes);
};

// Rows and seconds of a forward, averaged over about the last ten.
class RecentForwards {
 public:
  void add(int forward_rows, double forward_seconds);
  bool known() const { return rows_ > 0; }
  double rows() const { return rows_; }
  double seconds() const { return seconds_; }

 private:
  double rows_ = 0, seconds_ = 0;
};

}  // namespace stepfuse
