// Where samples are while they are drawn: who holds their states and histories, fills a forward's input rows and runs
// the fused step. There is one for the host's memory and one for a GPU's; the loop and its planner are the same.
//
// All of it is called by the thread that drives the loop, in the order begin, stage, await, the forward, step, and
// where somebody looks at what the step has left, settle. Only await and settle may wait.
#pragma once

#include <vector>

#include "denoiser.h"
#include "planner.h"
#include "sample.h"

namespace stepfuse {

// One forward: who steps behind it, and in which of its rows.
struct Iteration {
  StepPlan plan;
  std::vector<Sample*> samples;  // plan.entries[i] is of samples[i]

  // The entry of a sample that it was planned with last; null if it has none.
  const PlanEntry* entry_of(const Sample& sample) const {
    return sample.entry < 0 ? nullptr : &plan.entries[static_cast<std::size_t>(sample.entry)];
  }
};

class Stepper {
 public:
  virtual ~Stepper() = default;
  virtual const ModelSpec& spec() const = 0;

  // Makes the first state, from the sample's noise and what is known of it, and gives it a slot. If it throws, nothing
  // has changed.
  virtual void begin(Sample& sample) = 0;
  // The rows of the iteration hold what the network is to be given; those behind them, up to `rows`, what does no harm.
  virtual void stage(const Iteration& iteration, int rows) = 0;
  // Called before each forward, without the loop's lock: bounds how far a device is behind.
  virtual void throttle() {}
  // Each live sample of the iteration does its step, and fills its rows of `next`, where it is planned there. Notes in
  // `failed_step` whose state is not finite; a device may do so some iterations later.
  virtual void step(const Iteration& iteration, const Iteration& next) = 0;
  // Whether somebody looks at what the last step has left: a sample has ended, or is watched. Then `settle`, called
  // without the loop's lock, waits until states and previews are in the requests' memory.
  virtual bool needs_host_sync() const { return false; }
  virtual void synchronize() {}
  // The sample has ended: its slot is free.
  virtual void end(const Sample& sample) = 0;
};

// Puts the state before the first row into request.x, of `n` elements: from the noise that is there, or the seed's, and
// the image if one is known. A copy of the noise goes to `noise` if that is not null.
void first_state(const Request& request, std::int64_t n, float* noise);

}  // namespace stepfuse
