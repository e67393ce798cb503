#include "stepper.h"

#include <algorithm>

#include "../step/noise.h"

namespace stepfuse {

void first_state(const Request& request, std::int64_t n, float* noise) {
  if (!request.has_noise) fill_normal(request.seed, 0, NoiseStream::InitialState, 0, n, request.x);
  if (noise) std::copy(request.x, request.x + n, noise);
  if (request.known_region) return start_from(*request.known_region, n, request.x);
  for (std::int64_t k = 0; k < n; ++k) request.x[k] *= request.table->init_scale;
}

}  // namespace stepfuse
