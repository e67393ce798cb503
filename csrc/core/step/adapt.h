// What a step takes from the whole of its sample, which no column can hold. It is reduced first and then folded into
// the row, so that the fused step stays one pass and is the same with and without it.
//
//   guidance rescale  : e is scaled by k = phi std(e_c) / std(e) + 1 - phi, that is p_e, q_e and u_e are.
//                       Lin et al. (2023), section 3.4.
//   dynamic threshold : d is clamped to [-s, s] and divided by s, where s is a quantile of |d|, at least 1. p_x and p_e
//                       are divided by s and the bounds are 1. Saharia et al. (2022), section 2.3.
//   Numerics          : sums in float64, in order: the same bits on every instruction set.
//   Oracle            : diffusers' rescale_noise_cfg and _threshold_sample, in tests/core/test_adapt.py.
#pragma once

#include <cstdint>
#include <limits>

#include "row.h"

namespace stepfuse {

struct Adaptive {
  float guidance_rescale = 0;                                        // phi, 0 to 1; 0: off
  float threshold_ratio = 0;                                         // which quantile of |d|, up to 1; 0: off
  float largest_threshold = std::numeric_limits<float>::infinity();  // upper bound of s, at least 1

  bool any() const { return guidance_rescale > 0 || threshold_ratio > 0; }
};

// Folds what the step takes from the whole sample into its row, and into its second line if it has one. `eps_uncond` is
// null where the step is not guided: nothing is rescaled then. `scratch` has room for n floats. Values that are not
// finite are left to the step, which reports them.
void adapt(StepRow& row, SecondLine* second, const Adaptive& adaptive, std::int64_t n, const float* x, const float* eps,
           const float* eps_uncond, float* scratch);

}  // namespace stepfuse
