// What is given of a sample: an image to start from, and with a mask the part of it that stays.
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
  const float* image;         // (elements,)
  const float* mask;          // (elements,) 1: drawn, 0: the image's, between: blended; null: only the start is given
  std::vector<Level> levels;  // of the state before each row, and of the result behind the last
};

// Turns the noise in x into the state before the first row.
void start_from(const KnownRegion& known, std::int64_t n, float* x);

// Puts the image back where the mask keeps it: into the state that row `step` has left in span.out, at its level, into
// the next forward's rows and into the preview. `noise` is what the sample began with.
void keep_known(const KnownRegion& known, int step, const float* noise, const StepSpan<float>& span);

}  // namespace stepfuse
