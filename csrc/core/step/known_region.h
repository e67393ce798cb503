// The known region of a sample: an image to start from, and with a mask (inpainting) the part of it that is kept.
#pragma once

#include <cstdint>
#include <vector>

#include "fused_step.h"

namespace stepfuse {

// How a state is mixed from a clean sample and standard normal noise.
struct Level {
  float signal, noise;
};

// Pointers are borrowed.
struct KnownRegion {
  const float* image;  // (elements,)
  const float* mask;   // (elements,) 1: generated, 0: the image, between: blended; null: the image is only the start
  std::vector<Level> levels;  // of the state before each row, and of the result behind the last
};

// Turns the noise in x into the state before the first row.
void start_from(const KnownRegion& known, std::int64_t n, float* x);

// Puts the image back where the mask keeps it: into the state that row `step` has written to span.out, at the noise
// level of that state, into the next forward's rows and into the preview. `noise` is the sample's starting noise.
void keep_known(const KnownRegion& known, int step, const float* noise, const StepSpan<float>& span);

}  // namespace stepfuse
