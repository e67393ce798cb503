// The input rows of a forward in the host's memory.
#pragma once

#include "../step/fused_step.h"
#include "denoiser.h"
#include "planner.h"
#include "row_contents.h"

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
  // Rows from `from` to `to` repeat the first: what they held may belong to a sample that the network refused.
  void pad(int from, int to);

 private:
  bool claim(int row, const Sample& sample, int step, bool conditional);

  ForwardBuffers buffers_;
  RowContents row_contents_;
};

}  // namespace stepfuse
