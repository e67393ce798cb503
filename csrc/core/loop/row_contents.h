// Whose each input row of a forward is, and which of its steps it holds the state of, so that it is written only when
// it has to be: the fused step has filled most rows, and conditioning changes only when a row changes hands.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "sample.h"

namespace stepfuse {

class RowContents {
 public:
  struct Held {
    bool conditioning;  // the row holds what this pass of the sample is told
    bool state;         // and the state before that step
  };

  explicit RowContents(int rows) : contents_(static_cast<std::size_t>(rows)) {}

  // The row is the sample's from now on, for the step `step`; returns what it holds of it already.
  Held claim(int row, const Sample& sample, int step, bool conditional) {
    Content& content = contents_[static_cast<std::size_t>(row)];
    const bool same_sample = content.arrival == sample.standing.arrival;
    const Held held{same_sample && content.conditional == conditional, same_sample && content.step == step};
    content = {sample.standing.arrival, step, conditional};
    return held;
  }
  // Returns whether the row may have been somebody's.
  bool release(int row) { return std::exchange(contents_[static_cast<std::size_t>(row)], {}).arrival != 0; }
  // What the rows hold is not known.
  void forget() { std::fill(contents_.begin(), contents_.end(), Content{kUnknown, -1, false}); }

 private:
  static constexpr std::uint64_t kUnknown = ~std::uint64_t{0};

  struct Content {
    std::uint64_t arrival = 0;  // 0: nobody's, as at first
    int step = -1;
    bool conditional = false;
  };

  std::vector<Content> contents_;
};

}  // namespace stepfuse
