// Guidance that keeps the norm of the conditional prediction in every patch of a sample (CFG renormalization): in place
// of both predictions comes e = k (e_u + g (e_c - e_u)) with k = |e_c| / |e_u + g (e_c - e_u)| of the patch, which is
// all channels of p x p elements. What follows blends them by whatever g, and finds e again to the bit.
//
//   Numerics : sums in float64, in the order of channel, row and column; the same bits on every instruction set and
//   GPU. Oracle   : cfg_renorm_ref in kernels/reference.py; diffusers' QwenImagePipeline, whose tokens are patches.
#pragma once

#include <cstdint>

namespace stepfuse {

struct Renorm {
  std::int32_t patch = 0;                            // p; 0: off
  std::int32_t channels = 0, height = 0, width = 0;  // of a sample; p divides height and width

  bool any() const { return patch > 0; }
};

// What is not finite stays so: the step reports it. A patch whose blend is all zeros stays as it is.
void renorm(const Renorm& by, float g, float* eps, float* eps_uncond);

}  // namespace stepfuse
