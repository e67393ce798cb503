#include "fused_step.h"

#include "isa_kernels.h"

namespace stepfuse {

template <class T>
bool fused_step(const StepRow& row, const StepSpan<T>& span, Isa isa) {
  return with_kernels(isa, [&](auto kernels) { return kernels.step(row, span); });
}

namespace {

template <class P>
void advance_by(P*& pointer, std::int64_t n) {
  if (pointer) pointer += n;
}

}  // namespace

template <class T>
bool fused_steps(const float* rows, int columns, bool row_a_sample, std::int64_t samples, StepSpan<T> span, Isa isa) {
  bool finite = true;
  for (std::int64_t i = 0; i < samples; ++i) {
    const float* own = rows + (row_a_sample ? i * columns : 0);
    const SecondLine second = columns > kLineColumns ? line_from<SecondLine>(own + kLineColumns) : SecondLine{};
    if (columns > kLineColumns) span.second = &second;
    finite = fused_step(line_from<StepRow>(own), span, isa) && finite;
    advance_by(span.x, span.n), advance_by(span.eps, span.n), advance_by(span.eps_uncond, span.n);
    advance_by(span.h, span.n), advance_by(span.h2, span.n), advance_by(span.h3, span.n), advance_by(span.z, span.n);
    advance_by(span.out, span.n), advance_by(span.x0, span.n);
    advance_by(span.next_cond, span.n), advance_by(span.next_uncond, span.n);
  }
  return finite;
}

template bool fused_step(const StepRow&, const StepSpan<float>&, Isa);
template bool fused_step(const StepRow&, const StepSpan<Half>&, Isa);
template bool fused_step(const StepRow&, const StepSpan<BFloat16>&, Isa);
template bool fused_steps(const float*, int, bool, std::int64_t, StepSpan<float>, Isa);
template bool fused_steps(const float*, int, bool, std::int64_t, StepSpan<Half>, Isa);
template bool fused_steps(const float*, int, bool, std::int64_t, StepSpan<BFloat16>, Isa);

}  // namespace stepfuse
