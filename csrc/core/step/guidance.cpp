#include "guidance.h"

#include <algorithm>
#include <cmath>

namespace stepfuse {

namespace {

constexpr double kLeastSquare = 1e-8;  // beside <e_u, e_u>, as in diffusers
constexpr double kLeastShare = 1e-9;   // of e, as a multiple of the blend of its row: see `guide`

// Four partial sums, since one would wait for its last addition.
struct Total {
  double part[4] = {};

  void add(std::int64_t k, double value) { part[k % 4] += value; }
  operator double() const { return part[0] + part[1] + part[2] + part[3]; }
};

// e = cond e_c + uncond e_u + state x.
struct Weights {
  double cond, uncond, state = 0;
};

// The factor of the difference D that APG limits to a norm, and the share of the conditional vector that it takes away.
struct Projection {
  double limit, share;

  Projection(const Guidance& guidance, double dd, double db, double bb)
      : limit(guidance.norm_threshold > 0 && dd > 0 ? std::min(1.0, guidance.norm_threshold / std::sqrt(dd)) : 1.0),
        share(bb > 0 ? (static_cast<double>(guidance.eta) - 1) * db / bb : 0.0) {}
};

Weights weights_of(const StepRow& row, const Guidance& guidance, const GuidanceSums& sums) {
  const double g = row.g, dd = sums.cc - 2 * sums.cu + sums.uu, dc = sums.cc - sums.cu;
  switch (guidance.blend) {
    case Blend::Projected: {
      const Projection by(guidance, dd, dc, sums.cc);
      return {g * by.limit * (1 + by.share), 1 - g * by.limit};
    }
    case Blend::ProjectedClean: {
      const double p_x = row.p_x, p_e = row.p_e;
      const double on_clean = p_e * (p_x * (sums.xc - sums.xu) + p_e * dc);
      const double clean = p_x * p_x * sums.xx + 2 * p_x * p_e * sums.xc + p_e * p_e * sums.cc;
      const Projection by(guidance, p_e * p_e * dd, on_clean, clean);
      const double more = (g - 1) * by.limit;
      return {1 + more * (1 + by.share), -more, more * by.share * p_x / p_e};
    }
    case Blend::OptimizedScale:
      return {g, (1 - g) * sums.cu / (sums.uu + kLeastSquare)};
    case Blend::Plain:
      break;
  }
  return {g, 1 - g};
}

// phi std(e_c) / std(e) + 1 - phi; 1 where a prediction is constant, which has no deviation to match.
double rescale_factor(double phi, double n, const Weights& w, const GuidanceSums& sums) {
  const double c = sums.c / n, u = sums.u / n, x = sums.x / n;
  const double of_cond = sums.cc / n - c * c, of_uncond = sums.uu / n - u * u, of_state = sums.xx / n - x * x;
  const double variance = w.cond * w.cond * of_cond + w.uncond * w.uncond * of_uncond + w.state * w.state * of_state +
                          2 * (w.cond * w.uncond * (sums.cu / n - c * u) + w.cond * w.state * (sums.xc / n - x * c) +
                               w.uncond * w.state * (sums.xu / n - x * u));
  const double ratio = of_cond / variance;
  if (!(ratio > 0) || !std::isfinite(ratio)) return 1;
  return phi * std::sqrt(ratio) + 1 - phi;
}

}  // namespace

GuidanceSums guidance_sums(const Guidance& guidance, std::int64_t n, const float* x, const float* eps,
                           const float* eps_uncond) {
  Total c, u, cc, cu, uu;
  for (std::int64_t k = 0; k < n; ++k) {
    const double e_c = eps[k], e_u = eps_uncond[k];
    c.add(k, e_c);
    u.add(k, e_u);
    cc.add(k, e_c * e_c);
    cu.add(k, e_c * e_u);
    uu.add(k, e_u * e_u);
  }
  GuidanceSums sums{c, u, cc, cu, uu};
  if (guidance.blend != Blend::ProjectedClean) return sums;
  Total own, xx, xc, xu;
  for (std::int64_t k = 0; k < n; ++k) {
    const double state = x[k];
    own.add(k, state);
    xx.add(k, state * state);
    xc.add(k, state * eps[k]);
    xu.add(k, state * eps_uncond[k]);
  }
  sums.x = own, sums.xx = xx, sums.xc = xc, sums.xu = xu;
  return sums;
}

void guide(StepRow& row, SecondLine* second, const Guidance& guidance, std::int64_t n, const GuidanceSums& sums) {
  const Weights weights = weights_of(row, guidance, sums);
  double factor = guidance.rescale > 0 ? rescale_factor(guidance.rescale, static_cast<double>(n), weights, sums) : 1;
  float g = row.g, on_state = 0;
  if (guidance.blend != Blend::Plain) {
    // e as the row's own blend: share (e_u + g (e_c - e_u)). Where both weights cancel share is 0 and g has no limit.
    // A share of a billionth in its place changes e by no more than that, and leaves float32 all digits.
    const double size = std::fabs(weights.cond) + std::fabs(weights.uncond);
    const double least = kLeastShare * size, sum = weights.cond + weights.uncond;
    const double share = std::fabs(sum) < least ? std::copysign(least, sum) : sum;
    on_state = static_cast<float>(factor * weights.state);
    g = size > 0 ? static_cast<float>(weights.cond / share) : row.g;
    factor *= share;
  }
  const auto scale = static_cast<float>(factor);
  if (!std::isfinite(scale) || !std::isfinite(g) || !std::isfinite(on_state)) return;
  row.g = g;
  if (on_state != 0) {
    row.p_x += row.p_e * on_state;
    row.q_x += row.q_e * on_state;
    row.u_x += row.u_e * on_state;
    if (second) second->v_x += second->v_e * on_state;
  }
  row.p_e *= scale;
  row.q_e *= scale;
  row.u_e *= scale;
  if (second) second->v_e *= scale;
}

}  // namespace stepfuse
