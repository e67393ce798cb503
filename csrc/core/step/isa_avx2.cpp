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

constexpr Isa kIsa = Isa::Avx2;
#include "isa_exports.inl"

}  // namespace stepfuse

#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
