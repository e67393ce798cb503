#include "noise.h"

#include <algorithm>

#include "isa_kernels.h"

namespace stepfuse {

void fill_normal(std::uint64_t seed, std::uint32_t step, NoiseStream stream, std::int64_t first, std::int64_t n,
                 float* out, Isa isa) {
  const std::int64_t quads = n / 4;
  const auto stream_id = static_cast<std::uint32_t>(stream);
  with_kernels(isa, [&](auto kernels) {
    kernels.normal(seed, step, stream_id, first / 4, quads, out);
    float last[4];
    if (n % 4) {
      kernels.normal(seed, step, stream_id, first / 4 + quads, 1, last);
      std::copy_n(last, n % 4, out + 4 * quads);
    }
  });
}

}  // namespace stepfuse
