// Ways of guidance that depend on the whole of a sample. Each is a blend e = cond e_c + uncond e_u + state x whose
// weights follow from the sums of a few products over the sample; they are folded into the row.
//
//   rescaled        : any blend, scaled by k = phi std(e_c) / std(e) + 1 - phi. Lin et al. (2023), section 3.4.
//   projected       : e_u + g r (D + (eta - 1) pi e_c) with D = e_c - e_u, r = min(1, norm / |D|) and
//                     pi = <D, e_c> / <e_c, e_c>: APG of Sadat et al. (2024) as diffusers has it.
//   projected clean : the same of the clean estimates d_c and d_u, from the conditional one:
//                     d_c + (g - 1) r (D + (eta - 1) pi d_c), as in Algorithm 1 of the paper.
//   optimized scale : s e_u + g (e_c - s e_u) with s = <e_c, e_u> / <e_u, e_u>. CFG-Zero* of Fan et al. (2025).
//   Numerics        : sums in float64, four of each in order: the same bits on every instruction set.
//   Oracle          : diffusers' guiders and rescale_noise_cfg, in tests/engine/samplers/test_guidance.py.
#pragma once

#include <cstdint>

#include "row.h"

namespace stepfuse {

enum class Blend : std::uint8_t {
  Plain,           // e_u + g (e_c - e_u)
  Projected,       // APG on predictions
  ProjectedClean,  // APG on clean estimates
  OptimizedScale,  // CFG-Zero*
};

struct Guidance {
  float rescale = 0;  // phi, 0 to 1; 0: off
  Blend blend = Blend::Plain;
  float eta = 1;             // of APG: share of what is parallel to the conditional prediction
  float norm_threshold = 0;  // of APG: the longest difference; 0: any

  bool any() const { return rescale > 0 || blend != Blend::Plain; }
};

// Over a sample: of the conditional and unconditional prediction, the state, and products of two of them. What a
// guidance does not need of the state may be 0.
struct GuidanceSums {
  double c = 0, u = 0, cc = 0, cu = 0, uu = 0;
  double x = 0, xx = 0, xc = 0, xu = 0;
};

GuidanceSums guidance_sums(const Guidance& guidance, std::int64_t n, const float* x, const float* eps,
                           const float* eps_uncond);

// Folds the guidance of a sample of n elements into its row, and into its second line if it has one. Predictions that
// are not finite give no numbers that would hide them: the step reports them.
void guide(StepRow& row, SecondLine* second, const Guidance& guidance, std::int64_t n, const GuidanceSums& sums);

}  // namespace stepfuse
