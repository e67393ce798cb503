// The kernels of a step, one after the other: what no row can hold is put into the predictions, and what depends on the
// whole of a sample into its row; then comes the fused step, then the known region is put back. Most steps are the
// fused step alone.
#pragma once

#include <map>
#include <memory>
#include <vector>

#include "frames.h"
#include "step_kernel.h"

namespace stepfuse::cuda {

using KernelPtr = std::shared_ptr<const StepKernel>;

class StepProgram {
 public:
  struct Kernels {
    // The fused step by the most slots it is meant for: without noise and with, and for rows with a second line.
    std::map<int, KernelPtr> plain, noise, second;
    // Null: missing.
    KernelPtr guidance_sums, guided_rows, magnitude_counts, thresholded_rows, keep_known, renormed_predictions;
  };

  // Of the fused steps those may be missing that no step needs. Throws std::invalid_argument if all are.
  explicit StepProgram(Kernels kernels);

  // `arguments` are those of all kernels but those in the frame, which lies at `frame`. What a step does not need may
  // be missing. Rows are adapted where "adapted" says, of the frame's width: without it in the frame, which then serves
  // one run. Throws std::invalid_argument if it needs a kernel that there is none of, or an argument that has no value.
  std::vector<Launch> launches(int slots, const StepNeeds& needs, StepArguments arguments, CUdeviceptr frame) const;

  // Bytes of what adapting rows works in, 0 if these needs do not adapt any: "sums", and then "counts" in their place.
  std::size_t scratch_bytes(int slots, std::int64_t n, const StepNeeds& needs) const;

 private:
  Kernels kernels_;
};

}  // namespace stepfuse::cuda
