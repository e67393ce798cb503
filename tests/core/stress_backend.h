// Where a round of the stress test draws: one of stress_host.cpp and tests/cuda/stress_device.cpp is linked to it.
#pragma once

#include <cstdint>
#include <memory>

#include "../../csrc/core/loop/stepper.h"
#include "faulty_network.h"

namespace stepfuse {

class Place {
 public:
  virtual ~Place() = default;
  virtual std::unique_ptr<Stepper> stepper() = 0;  // once; it goes before the place does
  virtual Network& network() = 0;
  virtual bool looks() const { return true; }         // the network sees who is in its rows, and may refuse them
  virtual bool breaks_down() const { return false; }  // now and then, and whoever is there with it
};

std::unique_ptr<Place> make_place(const ModelSpec& spec, bool padded, std::uint64_t seed);

}  // namespace stepfuse
