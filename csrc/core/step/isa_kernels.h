// What one translation unit an instruction set provides: fused_step.cpp and noise.cpp choose among these.
#pragma once

#include <cstdint>

#include "dtype.h"
#include "fused_step.h"
#include "isa.h"

namespace stepfuse {

template <Isa kIsa>
struct Kernels {
  static bool step(const StepRow& row, const StepSpan<float>& span);
  static bool step(const StepRow& row, const StepSpan<Half>& span);
  static bool step(const StepRow& row, const StepSpan<BFloat16>& span);
  static void normal(std::uint64_t seed, std::uint32_t step, std::uint32_t stream, std::int64_t quad,
                     std::int64_t quads, float* out);
};

// Calls `visit` with the kernels of `isa`. Sets that this build does not have fall back to the portable one.
template <class Visit>
auto with_kernels(Isa isa, Visit visit) {
#if STEPFUSE_X86
  if (isa == Isa::Avx512) return visit(Kernels<Isa::Avx512>{});
  if (isa == Isa::Avx2) return visit(Kernels<Isa::Avx2>{});
#endif
  (void)isa;
  return visit(Kernels<Isa::Portable>{});
}

}  // namespace stepfuse
