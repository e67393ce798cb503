#include "adapt.h"

#include <algorithm>
#include <cmath>

namespace stepfuse {

namespace {

float blended(const StepRow& row, const float* eps, const float* eps_uncond, std::int64_t k) {
  return eps_uncond ? eps_uncond[k] + row.g * (eps[k] - eps_uncond[k]) : eps[k];
}

// The quantile between the two values nearest to it, as numpy and torch define it by default. Reorders `values`.
float quantile(float ratio, std::int64_t n, float* values) {
  const double position = static_cast<double>(ratio) * static_cast<double>(n - 1);
  const auto below = static_cast<std::int64_t>(position);
  std::nth_element(values, values + below, values + n);
  if (below + 1 == n) return values[below];
  const double low = values[below], high = *std::min_element(values + below + 1, values + n);
  return static_cast<float>(low + (position - static_cast<double>(below)) * (high - low));
}

}  // namespace

void adapt(StepRow& row, SecondLine* second, const Adaptive& adaptive, std::int64_t n, const float* x, const float* eps,
           const float* eps_uncond, float* scratch) {
  if (adaptive.guidance.any() && eps_uncond)
    guide(row, second, adaptive.guidance, n, guidance_sums(adaptive.guidance, n, x, eps, eps_uncond));
  if (adaptive.threshold_ratio > 0) {
    bool finite = true;
    for (std::int64_t k = 0; k < n; ++k) {
      scratch[k] = std::fabs(row.p_x * x[k] + row.p_e * blended(row, eps, eps_uncond, k));
      finite = finite && std::isfinite(scratch[k]);
    }
    if (!finite) return;
    const float threshold =
        std::clamp(quantile(adaptive.threshold_ratio, n, scratch), 1.0f, adaptive.largest_threshold);
    row.p_x /= threshold;
    row.p_e /= threshold;
    row.lo = -1;
    row.hi = 1;
  }
}

}  // namespace stepfuse
