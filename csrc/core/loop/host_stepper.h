// Samples in the host's memory. The state is the request's own, in place.
#pragma once

#include <vector>

#include "slots.h"
#include "staging.h"
#include "stepper.h"

namespace stepfuse {

class HostStepper final : public Stepper {
 public:
  explicit HostStepper(const ModelSpec& spec);  // throws as ForwardBuffers does

  ForwardBuffers& buffers() { return staging_.buffers(); }

  const ModelSpec& spec() const override { return staging_.spec(); }
  void begin(Sample& sample) override;
  void stage(const Iteration& iteration, int rows) override;
  void step(const Iteration& iteration, const Iteration& next) override;
  void end(const Sample& sample) override;

 private:
  struct SlotMemory {
    std::vector<float> history;  // (registers, elements), as many as the table uses
    std::vector<float> noise;    // (elements,), the starting noise; empty if no mask keeps a part of the sample
  };

  void step(Sample& sample, const PlanEntry& entry, const PlanEntry* next);

  Staging staging_;
  Slots slots_;
  std::vector<SlotMemory> in_slot_;
  AlignedBuffer scratch_;  // (elements,) of one step
};

}  // namespace stepfuse
