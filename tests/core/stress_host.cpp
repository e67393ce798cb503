// The stress test in the host's memory.
#include <algorithm>

#include "../../csrc/core/loop/host_stepper.h"
#include "stress_backend.h"

namespace stepfuse {

namespace {

class HostNetwork final : public Network {
 public:
  HostNetwork(ForwardBuffers& buffers, bool padded, std::uint64_t seed)
      : Network({buffers.spec, buffers.sample_row(0), buffers.timestep.data(),
                 static_cast<const float*>(buffers.cond[0].data()), static_cast<const Tag*>(buffers.cond[1].data()),
                 buffers.prediction_row(0)},
                padded, seed) {}

 private:
  void run(int rows) override {
    std::fill_n(rows_.prediction, rows * rows_.spec.elements,
                1e30f);  // what a network may have written before it raises
    raise_if_faulty(rows);
    predict_all(rows);
  }
};

class HostBackend final : public StressBackend {
 public:
  HostBackend(const ModelSpec& spec, bool padded, std::uint64_t seed)
      : stepper_(std::make_unique<HostStepper>(spec)), network_(stepper_->buffers(), padded, seed) {}

  std::unique_ptr<Stepper> stepper() override { return std::move(stepper_); }
  Network& network() override { return network_; }

 private:
  std::unique_ptr<HostStepper> stepper_;
  HostNetwork network_;
};

}  // namespace

std::unique_ptr<StressBackend> make_stress_backend(const ModelSpec& spec, bool padded, std::uint64_t seed) {
  return std::make_unique<HostBackend>(spec, padded, seed);
}

}  // namespace stepfuse
