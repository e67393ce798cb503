#include "known_region.h"

namespace stepfuse {

void start_from(const KnownRegion& known, std::int64_t n, float* x) {
  const Level level = known.levels.front();
  for (std::int64_t k = 0; k < n; ++k) x[k] = level.signal * known.image[k] + level.noise * x[k];
}

void keep_known(const KnownRegion& known, int step, const float* noise, const StepSpan<float>& span) {
  const Level level = known.levels[static_cast<std::size_t>(step) + 1];
  for (std::int64_t k = 0; k < span.n; ++k) {
    const float given = level.signal * known.image[k] + level.noise * noise[k];
    const float next = known.mask[k] * span.out[k] + (1 - known.mask[k]) * given;
    span.out[k] = next;
    if (span.x0) span.x0[k] = known.mask[k] * span.x0[k] + (1 - known.mask[k]) * known.image[k];
    if (span.next_cond) span.next_cond[k] = span.next_scale * next;
    if (span.next_uncond) span.next_uncond[k] = span.next_scale * next;
  }
}

}  // namespace stepfuse
