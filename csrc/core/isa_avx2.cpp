#include "isa.h"

#if STEPFUSE_X86
#include <cmath>
#include <cstring>

#include "dtype.h"
#include "isa_kernels.h"
#include "philox.h"

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2")
#endif

namespace stepfuse {

namespace {
constexpr int kLanes = 8;
#include "isa_kernel.inl"
}  // namespace

template <>
bool Kernels<Isa::Avx2>::step(const StepRow& row, const StepSpan<float>& span) {
  return dispatch(row, span);
}
template <>
bool Kernels<Isa::Avx2>::step(const StepRow& row, const StepSpan<Half>& span) {
  return dispatch(row, span);
}
template <>
bool Kernels<Isa::Avx2>::step(const StepRow& row, const StepSpan<BFloat16>& span) {
  return dispatch(row, span);
}
template <>
void Kernels<Isa::Avx2>::normal(std::uint64_t seed, std::uint32_t step, std::uint32_t stream, std::int64_t quad,
                                std::int64_t quads, float* out) {
  normal_quads(seed, step, stream, quad, quads, out);
}

}  // namespace stepfuse

#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
