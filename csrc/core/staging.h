// The input rows of a forward. Each remembers whose it is and which step it holds, so that it is written only when it
// has to be: the fused step has filled most of them, and conditioning changes only when a row changes hands.
#pragma once

#include <cstdint>
#include <vector>

#include "denoiser.h"
#include "planner.h"
#include "sample.h"
#include "step_cpu.h"

namespace stepfuse {

class Staging {
 public:
  explicit Staging(const ModelSpec& spec);

  ForwardBuffers& buffers() { return buffers_; }
  const ModelSpec& spec() const { return buffers_.spec; }

  // The rows of `entry` hold what the network needs for the sample's next step.
  void stage(const Sample& sample, const PlanEntry& entry);
  // The step described by `span` writes the rows of `entry`, for the step after it.
  void aim(const Sample& sample, const PlanEntry& entry, StepSpan<float>& span);
  // Rows from `rows` on repeat the first: what they held may belong to a sample that the network refused.
  void pad(int rows);

 private:
  struct Content {
    std::uint64_t arrival = 0;
    int step = -1;
    bool conditional = false;
  };

  bool claim(int row, const Sample& sample, int step, bool conditional);

  ForwardBuffers buffers_;
  std::vector<Content> contents_;
};

}  // namespace stepfuse
