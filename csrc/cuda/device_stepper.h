// Samples in a GPU's memory, for the loop of csrc/core: states and histories lie in slots, and one launch of the fused
// step runs over all of them, each at its own row of its own table.
//
// The host is ahead of the device: it plans and enqueues an iteration while the device runs the one before. Only
// `throttle` waits, which bounds how far ahead it is, and `synchronize`, which brings results and previews to the host.
// So a state that is not finite is found an iteration or two late. While samples and rows stay as they are, an
// iteration is several steps, a graph with their forwards (pieces.h).
#pragma once

#include <array>
#include <exception>
#include <memory>
#include <vector>

#include "../core/loop/row_contents.h"
#include "../core/loop/slots.h"
#include "../core/loop/stepper.h"
#include "frame.h"
#include "pieces.h"
#include "pinned_arena.h"
#include "slot_memory.h"
#include "step_program.h"

namespace stepfuse::cuda {

// How conditioning is stored on the device; on the host it is as the request has it.
enum class Stored : std::uint8_t { AsIs, Float32AsFloat16, Float32AsBFloat16 };

// A network's rows, memory that its back end owns: (max_rows, ...) each.
struct DeviceRows {
  struct Cond {
    CUdeviceptr address;
    Stored stored;
  };

  ForwardRows forward;
  std::size_t sample_bytes;  // of one sample
  std::vector<Cond> cond;
};

class DeviceStepper final : public Stepper {
 public:
  // The stream is borrowed, and the network's forwards run on it. The program's kernels are for float32 states and the
  // rows' type. `forwards` are captured ones by their rows, for several steps at once; without them there are none.
  DeviceStepper(const Stream& stream, ModelSpec spec, DeviceRows rows, StepProgram program,
                std::map<int, std::shared_ptr<const Graph>> forwards = {});
  ~DeviceStepper() override;

  // Device memory of so many slots, without what masks and adapted guidance take from their first use on.
  static std::size_t bytes(int slots, std::int64_t elements);

  const ModelSpec& spec() const override { return spec_; }
  void begin(Sample& sample) override;
  void stage(const Iteration& iteration, int rows) override;
  void throttle() override;
  bool takes_several() const override { return pieces_.any(); }
  int steps_at_once(const Iteration& iteration) override;
  void step(const Iteration& iteration, const Iteration& next) override;
  bool needs_host_sync() const override { return broken_ || !downloads_.empty(); }
  void synchronize() override;
  void end(const Sample& sample) override;

 private:
  // A copy of a sample to pinned memory of the flight, and where it goes from there.
  struct Download {
    const DeviceBuffer* from;
    std::size_t offset;
    void *pinned, *to;
  };
  struct Stepped {
    int slot;
    std::uint64_t arrival;
    int step;
    int flag;  // index of its flag
  };

  // What the device is given for an iteration, and what it returns.
  struct Flight {
    explicit Flight(const ContextPtr& context) : pinned(context), copied(context), passed(context) {}

    PinnedArena pinned;
    std::unique_ptr<DeviceBuffer> frame;  // of its step
    Event copied, passed;
    bool enqueued = false;
    std::vector<Stepped> stepped;
    const std::int32_t* nonfinite = nullptr;
  };
  static constexpr std::size_t kFlights = 3;  // one being filled, one enqueued, one whose end was waited for

  struct Unwinding {
    DeviceStepper& stepper;
    const int before = std::uncaught_exceptions();

    ~Unwinding() {
      if (std::uncaught_exceptions() > before) stepper.roll_back();
    }
  };

  Flight& flight(std::size_t ahead = 0) { return flights_[(current_ + ahead) % kFlights]; }
  void roll_back();
  void upload(CUdeviceptr to, const void* from, std::size_t host_bytes, Stored stored = Stored::AsIs);
  void upload_cond(int row, const std::vector<const void*>& values);
  void blank(int row);
  PlanEntry claim(const Sample& sample, int step, const PlanEntry& rows);
  void reserve(int slots);
  void fill(Sample& sample, int slot);
  Pieces::Key key_of(const Iteration& iteration, int steps) const;
  void put(Frame& frame, const Sample& sample, int ahead, const PlanEntry& entry, const PlanEntry* to);
  Frames frames_of(const Iteration& iteration, const Iteration& next, const Pieces::Key& key);
  void claim_next(const Iteration& iteration, const Iteration& next);
  void* pinned_copy(const Frames& frames);
  void copy(const Frames& frames);
  std::vector<Launch> launches(const Frames& frames, StepArguments arguments, const DeviceBuffer& frame);
  void copy_results(const Iteration& iteration);
  std::int32_t* take_flags(const Frames& frames);
  void end_flight();
  void await(Flight& flight);

  const ContextPtr context_;
  Stream stream_;
  ModelSpec spec_;
  std::size_t state_bytes_;  // of one sample
  DeviceRows rows_;
  StepProgram program_;
  RowContents row_contents_;

  Slots slots_;
  std::vector<Sample*> samples_;  // a slot each
  SlotMemory memory_;
  std::unique_ptr<DeviceBuffer> staging_;  // the frame of what fills rows before a forward
  // Frames of steps are copied on a stream of their own, while the device runs the forward before the step.
  Stream copies_;
  bool behind_ = false;  // a frame that is used anew may still be read
  Pieces pieces_;
  Trajectory* piece_ = nullptr;  // of the iteration, if that is several steps
  Pieces::Key piece_key_{};
  int forward_rows_ = 0;  // of the iteration that was staged last
  DeviceBuffer zeros_;    // (elements,): the prediction of a step that only moves states

  std::array<Flight, kFlights> flights_;
  std::size_t current_ = 0;
  bool staged_ = false;              // an iteration has been staged, and not stepped
  std::vector<Download> downloads_;  // of the last step
  std::exception_ptr broken_;        // what failed after the last launch
};

}  // namespace stepfuse::cuda
