#include "slot_memory.h"

#include <algorithm>
#include <utility>

namespace stepfuse::cuda {

namespace {

constexpr std::size_t kKnownParts = 3;  // image, mask, first noise

std::uint64_t address_of(const std::unique_ptr<DeviceBuffer>& buffer) { return buffer ? buffer->get() : 0; }

}  // namespace

SlotMemory::SlotMemory(const Stream& stream, const ModelSpec& spec, Use use)
    : stream_(stream.shared()),
      spec_(spec),
      state_bytes_(static_cast<std::size_t>(spec.elements) * sizeof(float)),
      use_(use) {}

std::size_t SlotMemory::bytes(int slots, std::int64_t elements) {
  constexpr std::size_t kStates = 3;  // x, h, x0
  const std::size_t slot = kStates * static_cast<std::size_t>(elements) * sizeof(float) + sizeof(std::uint64_t);
  return static_cast<std::size_t>(slots) * slot;
}

void SlotMemory::reserve(int slots) {
  if (slots <= capacity_) return;
  const int grown = std::max(slots, 2 * capacity_);
  const auto count = static_cast<std::size_t>(grown);
  cuda::reserve(x_, stream_, count * state_bytes_);
  for (Buffer& h : registers_)
    if (h || &h == &registers_[0]) cuda::reserve(h, stream_, count * state_bytes_);
  if (use_ == Use::Loop) cuda::reserve(x0_, stream_, count * state_bytes_);
  cuda::reserve(seed_, stream_, count * sizeof(std::uint64_t));
  capacity_ = grown;
}

void SlotMemory::reserve_registers(int count) {
  for (int i = 0; i < count; ++i)
    cuda::reserve(registers_[static_cast<std::size_t>(i)], stream_, static_cast<std::size_t>(capacity_) * state_bytes_);
}

void SlotMemory::reserve_known() {
  cuda::reserve(known_, stream_, static_cast<std::size_t>(capacity_) * kKnownParts * state_bytes_);
}

void SlotMemory::reserve_scratch(std::size_t bytes) { cuda::reserve(scratch_, stream_, bytes); }

StepArguments SlotMemory::arguments(const ForwardRows& rows, bool previews) const {
  using A = StepArgument;
  const auto n = static_cast<std::uint64_t>(spec_.elements), count = static_cast<std::uint64_t>(spec_.max_rows);
  const bool whole = spec_.timestep == TimestepType::Int64;
  const std::pair<A, std::uint64_t> values[] = {
      {A::x, address_of(x_)},
      {A::out, address_of(x_)},
      {A::h, address_of(registers_[0])},
      {A::h2, address_of(registers_[1])},
      {A::h3, address_of(registers_[2])},
      {A::x0, previews ? address_of(x0_) : 0},
      {A::seed, address_of(seed_)},
      {A::nonfinite, 0},
      {A::prediction, rows.prediction},
      {A::next_input, rows.sample},
      {A::next_t, whole ? 0 : rows.timestep},
      {A::next_t_int, whole ? rows.timestep : 0},
      {A::prediction_rows, count},
      {A::next_input_rows, count},
      {A::n, n},
      {A::x_stride, n},
      {A::out_stride, n},
      {A::prediction_stride, n},
      {A::next_input_stride, n},
  };
  StepArguments arguments;
  for (const auto& [argument, value] : values) arguments.set(argument, value);
  if (known_) arguments.set(A::known, known_->get());
  if (scratch_)
    for (const A one : {A::sums, A::counts})
      arguments.set(one, scratch_->get());  // one is read before the other is written
  return arguments;
}

}  // namespace stepfuse::cuda
