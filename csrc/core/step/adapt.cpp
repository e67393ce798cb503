#include "adapt.h"

#include <algorithm>
#include <cmath>

namespace stepfuse {

namespace {

float blended(const StepRow& row, const float* eps, const float* eps_uncond, std::int64_t k) {
  return eps_uncond ? eps_uncond[k] + row.g * (eps[k] - eps_uncond[k]) : eps[k];
}

// Sums of a sample's values and of their squares; four of each, since one sum would wait for its last addition.
struct Spread {
  double sum[4] = {}, squares[4] = {};

  void add(std::int64_t k, double value) {
    sum[k % 4] += value;
    squares[k % 4] += value * value;
  }
  double variance(double n) const {
    const double mean = (sum[0] + sum[1] + sum[2] + sum[3]) / n;
    return (squares[0] + squares[1] + squares[2] + squares[3]) / n - mean * mean;
  }
};

float rescale_factor(const StepRow& row, float phi, std::int64_t n, const float* eps, const float* eps_uncond) {
  Spread cond, guided;
  for (std::int64_t k = 0; k < n; ++k) {
    cond.add(k, eps[k]);
    guided.add(k, blended(row, eps, eps_uncond, k));
  }
  const double ratio = cond.variance(static_cast<double>(n)) / guided.variance(static_cast<double>(n));
  if (!(ratio > 0) || !std::isfinite(ratio)) return 1;  // a constant prediction has no deviation to match
  return static_cast<float>(phi * std::sqrt(ratio) + 1 - phi);
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
  if (adaptive.guidance_rescale > 0 && eps_uncond) {
    const float factor = rescale_factor(row, adaptive.guidance_rescale, n, eps, eps_uncond);
    row.p_e *= factor;
    row.q_e *= factor;
    row.u_e *= factor;
    if (second) second->v_e *= factor;
  }
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
