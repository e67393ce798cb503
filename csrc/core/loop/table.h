// A sampler's rows, as the loop runs them.
#pragma once

#include <vector>

#include "../step/adapt.h"
#include "../step/row.h"

namespace stepfuse {

struct Table {
  // `second` has a line for each row, or none. Throws std::invalid_argument if it has another number.
  Table(std::vector<StepRow> rows, float init_scale, const Adaptive& adaptive = {},
        std::vector<SecondLine> second = {});

  int size() const { return static_cast<int>(rows.size()); }
  // Network passes from a step to the end.
  int passes_left(int step, bool conditioned) const {
    return conditioned ? conditioned_passes[static_cast<std::size_t>(step)] : size() - step;
  }

  const SecondLine* second_line(int step) const {  // null: the table's steps have one
    return second.empty() ? nullptr : &second[static_cast<std::size_t>(step)];
  }
  bool adds_noise(int step) const {
    const SecondLine* line = second_line(step);
    return rows[static_cast<std::size_t>(step)].adds_noise() || (line && line->adds_noise());
  }

  std::vector<StepRow> rows;            // one a step
  std::vector<SecondLine> second;       // likewise, or empty
  float init_scale;                     // the first state is init_scale times standard normal noise
  Adaptive adaptive;                    // what each step takes from the whole sample
  int registers;                        // of the history, that the rows read or keep: 0 to 3
  std::vector<int> conditioned_passes;  // from step i to the end, for a sample with conditioning
};

}  // namespace stepfuse
