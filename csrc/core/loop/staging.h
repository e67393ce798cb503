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

  // Makes the rows of `entry` hold what the network needs for the sample's next step.
  void stage(const Sample& sample, const PlanEntry& entry);
  // Makes the step described by `span` write the state after it into the rows of `entry`, for the step that follows.
  void set_next_rows(const Sample& sample, const PlanEntry& entry, StepSpan<float>& span);
  // Makes rows [from, to) repeat the first: what they held may belong to a sample that the network raised for.
  void pad(int from, int to);

 private:
  bool set_inputs(int row, const Sample& sample, int step, bool conditional);

  ForwardBuffers buffers_;
  RowContents row_contents_;
};

}  // namespace stepfuse
