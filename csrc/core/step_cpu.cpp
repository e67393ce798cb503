#include "step_cpu.h"

#include "isa_kernels.h"

namespace stepfuse {

template <class T>
bool fused_step(const StepRow& row, const StepSpan<T>& span, Isa isa) {
  return with_kernels(isa, [&](auto kernels) { return kernels.step(row, span); });
}

template bool fused_step(const StepRow&, const StepSpan<float>&, Isa);
template bool fused_step(const StepRow&, const StepSpan<Half>&, Isa);
template bool fused_step(const StepRow&, const StepSpan<BFloat16>&, Isa);

}  // namespace stepfuse
