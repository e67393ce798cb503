// Which sample each input row of a forward belongs to, and which step's state it holds, so that a row is written only
// when necessary: the fused step has filled most rows, and conditioning changes only when a row changes its sample.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "sample.h"

namespace stepfuse {

class RowContents {
 public:
  // What of a row is valid for a sample's pass.
  struct Valid {
    bool conditioning;  // the conditioning of this pass
    bool state;         // the state before this step
  };

  explicit RowContents(int rows) : contents_(static_cast<std::size_t>(rows)) {}

  // Assigns the row to the sample, for the step `step`. Returns what of the row is valid already.
  Valid claim(int row, const Sample& sample, int step, bool conditional) {
    Content& content = contents_[static_cast<std::size_t>(row)];
    const bool same_sample = content.arrival == sample.standing.arrival;
    const Valid valid{same_sample && content.conditional == conditional, same_sample && content.step == step};
    content = {sample.standing.arrival, step, conditional};
    return valid;
  }
  // Assigns the row to no sample. Returns whether it may have belonged to one.
  bool release(int row) { return std::exchange(contents_[static_cast<std::size_t>(row)], {}).arrival != 0; }
  // Makes no row valid for any sample.
  void invalidate() { std::fill(contents_.begin(), contents_.end(), Content{kUnknown, -1, false}); }

 private:
  static constexpr std::uint64_t kUnknown = ~std::uint64_t{0};

  struct Content {
    std::uint64_t arrival = 0;  // of its sample; 0: of none, as at first
    int step = -1;
    bool conditional = false;
  };

  std::vector<Content> contents_;
};

}  // namespace stepfuse
