#include "denoiser.h"

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>

namespace stepfuse {

namespace {
constexpr std::size_t kAlignment = 64;

std::size_t timestep_bytes(TimestepType type) {
  return type == TimestepType::Int64 ? sizeof(std::int64_t) : sizeof(float);
}

const ModelSpec& checked(const ModelSpec& spec) {
  if (spec.elements < 1 || spec.max_rows < 1) throw std::invalid_argument("elements and max_rows must be at least 1");
  if (spec.elements > PTRDIFF_MAX / 2 / static_cast<std::int64_t>(sizeof(float)) / spec.max_rows)
    throw std::invalid_argument("max_rows samples of this shape do not fit the address space");
  for (const std::size_t bytes : spec.cond_bytes)
    if (bytes > static_cast<std::size_t>(PTRDIFF_MAX / 2 / spec.max_rows))
      throw std::invalid_argument("max_rows values of a conditioning input do not fit the address space");
  return spec;
}

std::size_t state_bytes(const ModelSpec& spec) {
  return static_cast<std::size_t>(spec.max_rows) * static_cast<std::size_t>(spec.elements) * sizeof(float);
}
}  // namespace

AlignedBuffer::AlignedBuffer(std::size_t bytes)
    : memory_(std::calloc(bytes + kAlignment, 1), &std::free), bytes_(bytes) {
  if (!memory_) throw std::bad_alloc();
  const auto address = reinterpret_cast<std::uintptr_t>(memory_.get());
  data_ = reinterpret_cast<void*>((address + kAlignment - 1) / kAlignment * kAlignment);
}

ForwardBuffers::ForwardBuffers(const ModelSpec& model)
    : spec(checked(model)),
      sample(state_bytes(model)),
      timestep(static_cast<std::size_t>(model.max_rows) * timestep_bytes(model.timestep)),
      prediction(state_bytes(model)) {
  for (const std::size_t bytes : model.cond_bytes) cond.emplace_back(static_cast<std::size_t>(model.max_rows) * bytes);
}

float* ForwardBuffers::sample_row(int row) { return static_cast<float*>(sample.data()) + row * spec.elements; }

float* ForwardBuffers::prediction_row(int row) { return static_cast<float*>(prediction.data()) + row * spec.elements; }

void ForwardBuffers::set_timestep(int row, float t) {
  if (spec.timestep == TimestepType::Int64) {
    static_cast<std::int64_t*>(timestep.data())[row] = std::llrint(t);
  } else {
    static_cast<float*>(timestep.data())[row] = t;
  }
}

void ForwardBuffers::set_cond(std::size_t input, int row, const void* value) {
  const std::size_t bytes = spec.cond_bytes[input];
  std::memcpy(static_cast<std::byte*>(cond[input].data()) + static_cast<std::size_t>(row) * bytes, value, bytes);
}

void ForwardBuffers::copy_inputs(int from, int to) {
  const auto copy = [&](AlignedBuffer& buffer) {
    const std::size_t bytes = buffer.bytes() / static_cast<std::size_t>(spec.max_rows);
    auto* rows = static_cast<std::byte*>(buffer.data());
    std::memcpy(rows + static_cast<std::size_t>(to) * bytes, rows + static_cast<std::size_t>(from) * bytes, bytes);
  };
  copy(sample);
  copy(timestep);
  for (AlignedBuffer& input : cond) copy(input);
}

}  // namespace stepfuse
