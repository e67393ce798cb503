// A sampler's rows, as the loop runs them.
#pragma once

#include <vector>

#include "../step/adapt.h"
#include "../step/row.h"

namespace stepfuse {

struct Table {
  Table(std::vector<StepRow> rows, float init_scale, const Adaptive& adaptive = {});

  int size() const { return static_cast<int>(rows.size()); }
  // Network passes from a step to the end.
  int passes_left(int step, bool conditioned) const {
    return conditioned ? conditioned_passes[static_cast<std::size_t>(step)] : size() - step;
  }

  std::vector<StepRow> rows;            // one a step
  float init_scale;                     // the first state is init_scale times standard normal noise
  Adaptive adaptive;                    // what each step takes from the whole sample
  bool uses_history;                    // whether any row reads or keeps a history
  std::vector<int> conditioned_passes;  // from step i to the end, for a sample with conditioning
};

}  // namespace stepfuse
