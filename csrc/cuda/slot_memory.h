// Device memory of the samples in slots, and the step's arguments over it. The loop's stepper and the trajectory of a
// static batch each have one; the rows of a forward are the network's.
#pragma once

#include <array>
#include <memory>

#include "../core/loop/denoiser.h"
#include "memory.h"
#include "step_arguments.h"

namespace stepfuse::cuda {

// Where the rows of a forward are: memory that the network's back end owns, (max_rows, ...) each.
struct ForwardRows {
  CUdeviceptr sample, timestep, prediction;
};

class SlotMemory {
 public:
  enum class Use : std::uint8_t {
    Loop,         // has previews
    StaticBatch,  // has none
  };

  // The stream is borrowed; contents that move to larger memory are copied on it.
  SlotMemory(const Stream& stream, const ModelSpec& spec, Use use);

  // Of so many slots of a loop, without what masks, second lines and adapted guidance take.
  static std::size_t bytes(int slots, std::int64_t elements);

  // Grows to at least so many slots, whose contents stay. Throws CudaError if there is no memory.
  void reserve(int slots);
  void reserve_registers(int count);        // so many history registers for each slot: one is always there
  void reserve_known();                     // a known region for each slot
  void reserve_scratch(std::size_t bytes);  // what adapting rows works in
  int capacity() const { return capacity_; }

  // (capacity, ...) each, and null before it is reserved.
  DeviceBuffer* x() const { return x_.get(); }
  DeviceBuffer* h(int index = 0) const { return registers_[static_cast<std::size_t>(index)].get(); }
  DeviceBuffer* x0() const { return x0_.get(); }
  DeviceBuffer* seed() const { return seed_.get(); }
  DeviceBuffer* scratch() const { return scratch_.get(); }
  DeviceBuffer* known() const { return known_.get(); }  // (3, elements) a slot: image, mask, first noise

  // The arguments of all kernels of a step but those in its frame. Without `previews` none are written; what is not
  // finite is not reported until `nonfinite` is set.
  StepArguments arguments(const ForwardRows& rows, bool previews) const;

 private:
  using Buffer = std::unique_ptr<DeviceBuffer>;

  Stream stream_;
  ModelSpec spec_;
  std::size_t state_bytes_;  // of one sample
  Use use_;
  int capacity_ = 0;
  std::array<Buffer, 3> registers_;  // the history
  Buffer x_, x0_, seed_, known_, scratch_;
};

}  // namespace stepfuse::cuda
