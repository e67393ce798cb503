// What a step takes from the whole of its sample, which no column can hold. It is reduced first and then folded into
// the row, so that the fused step stays one pass and is the same with and without it.
//
//   guidance          : e is blended otherwise than by g alone (guidance.h).
//   renorm            : so it is patch by patch, which no row holds: e takes the predictions' place first (renorm.h).
//   dynamic threshold : d is clamped to [-s, s] and divided by s, where s is a quantile of |d|, at least 1. p_x and p_e
//                       are divided by s and the bounds are 1. Saharia et al. (2022), section 2.3.
//   Numerics          : the same bits on every instruction set.
//   Oracle            : diffusers' _threshold_sample, in tests/engine/samplers/test_adaptive.py.
#pragma once

#include <cstdint>
#include <limits>

#include "guidance.h"
#include "renorm.h"
#include "row.h"

namespace stepfuse {

struct Adaptive {
  Guidance guidance;
  float threshold_ratio = 0;                                         // which quantile of |d|, up to 1; 0: off
  float largest_threshold = std::numeric_limits<float>::infinity();  // upper bound of s, at least 1
  Renorm renorm;

  bool any() const { return guidance.any() || threshold_ratio > 0 || renorm.any(); }
};

// Folds what the step takes from the whole sample into its row, and into its second line if it has one. `eps_uncond` is
// null where the step is not guided. `scratch` has room for n floats. What is not finite stays so: the step reports it.
void adapt(StepRow& row, SecondLine* second, const Adaptive& adaptive, std::int64_t n, const float* x, const float* eps,
           const float* eps_uncond, float* scratch);

}  // namespace stepfuse
