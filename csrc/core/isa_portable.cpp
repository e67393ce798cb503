#include <cmath>
#include <cstring>

#include "dtype.h"
#include "isa_kernels.h"
#include "philox.h"

namespace stepfuse {

namespace {
constexpr int kLanes = 4;
#include "isa_kernel.inl"
}  // namespace

template <>
bool Kernels<Isa::Portable>::step(const StepRow& row, const StepSpan<float>& span) {
  return dispatch(row, span);
}
template <>
bool Kernels<Isa::Portable>::step(const StepRow& row, const StepSpan<Half>& span) {
  return dispatch(row, span);
}
template <>
bool Kernels<Isa::Portable>::step(const StepRow& row, const StepSpan<BFloat16>& span) {
  return dispatch(row, span);
}
template <>
void Kernels<Isa::Portable>::normal(std::uint64_t seed, std::uint32_t step, std::uint32_t stream, std::int64_t quad,
                                    std::int64_t quads, float* out) {
  normal_quads(seed, step, stream, quad, quads, out);
}

}  // namespace stepfuse
