// The kernels that a translation unit of one instruction set exports. Included after isa_kernel.inl and `kIsa`.

template <>
bool Kernels<kIsa>::step(const StepRow& row, const StepSpan<float>& span) {
  return dispatch(row, span);
}
template <>
bool Kernels<kIsa>::step(const StepRow& row, const StepSpan<Half>& span) {
  return dispatch(row, span);
}
template <>
bool Kernels<kIsa>::step(const StepRow& row, const StepSpan<BFloat16>& span) {
  return dispatch(row, span);
}
template <>
void Kernels<kIsa>::normal(std::uint64_t seed, std::uint32_t step, std::uint32_t stream, std::int64_t quad,
                           std::int64_t quads, float* out) {
  normal_quads(seed, step, stream, quad, quads, out);
}
