// Whose each input row of a forward is, and which of its steps it holds the state of, so that it is written only when
// it has to be: the fused step has filled most rows, and conditioning changes only when a row changes hands.
#pragma once

#include <cstdint>
#include <vector>

#include "sample.h"

namespace stepfuse {

class RowOwners {
 public:
  struct Held {
    bool conditioning;  // the row holds what this pass of the sample is told
    bool state;         // and the state before that step
  };

  explicit RowOwners(int rows) : contents_(static_cast<std::size_t>(rows)) {}

  // The row is the sample's from now on, for the step `step`; returns what it holds of it already.
  Held claim(int row, const Sample& sample, int step, bool conditional) {
    Content& content = contents_[static_cast<std::size_t>(row)];
    const bool same_sample = content.arrival == sample.standing.arrival;
    const Held held{same_sample && content.conditional == conditional, same_sample && content.step == step};
    content = {sample.standing.arrival, step, conditional};
    return held;
  }
  void release(int row) { contents_[static_cast<std::size_t>(row)] = {}; }

 private:
  struct Content {
    std::uint64_t arrival = 0;
    int step = -1;
    bool conditional = false;
  };

  std::vector<Content> contents_;
};

}  // namespace stepfuse
