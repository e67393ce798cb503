// Samples in the host's memory. The state is the request's own, in place.
#pragma once

#include <vector>

#include "slots.h"
#include "staging.h"
#include "stepper.h"

namespace stepfuse {

class HostStepper final : public Stepper {
 public:
  explicit HostStepper(const ModelSpec& spec);

  ForwardBuffers& buffers() { return staging_.buffers(); }

  const ModelSpec& spec() const override { return staging_.spec(); }
  void begin(Sample& sample) override;
  void stage(const Iteration& iteration, int rows) override;
  void step(const Iteration& iteration, const Iteration& next) override;
  void end(const Sample& sample) override;

 private:
  struct Held {
    std::vector<float> history;
    std::vector<float> noise;  // that the sample began with, where a part of it is kept
  };

  void step(Sample& sample, const PlanEntry& entry, const PlanEntry* next);

  Staging staging_;
  Slots slots_;
  std::vector<Held> held_;  // a slot each
  AlignedBuffer scratch_;   // (elements,) of one step
};

}  // namespace stepfuse
