// What a round of the stress test runs on: stress_host.cpp or tests/cuda/stress_device.cpp is linked to it.
#pragma once

#include <cstdint>
#include <memory>

#include "../../csrc/core/loop/stepper.h"
#include "faulty_network.h"

namespace stepfuse {

class StressBackend {
 public:
  virtual ~StressBackend() = default;
  virtual std::unique_ptr<Stepper> stepper() = 0;  // once; destroyed before the backend
  virtual Network& network() = 0;
  virtual bool reads_rows() const { return true; }        // whether the network may raise for a row
  virtual bool fails_at_random() const { return false; }  // whether a forward may fail for all its samples
  // Memory of the device, which the host may read here, for one sample; null: samples are on the host.
  virtual std::shared_ptr<const float> device_memory() { return nullptr; }
};

std::unique_ptr<StressBackend> make_stress_backend(const ModelSpec& spec, bool padded, std::uint64_t seed);

}  // namespace stepfuse
