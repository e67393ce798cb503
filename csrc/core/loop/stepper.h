// Holds the states and histories of running samples, fills a forward's input rows and runs the fused step. There is one
// stepper for the host's memory and one for a GPU's; the loop and its planner are the same for both.
//
// It is called by the thread that runs the loop, in the order begin, stage, throttle, steps_at_once, the forward, step,
// and, if needs_host_sync(), synchronize. Only throttle and synchronize may wait.
#pragma once

#include <vector>

#include "denoiser.h"
#include "planner.h"
#include "sample.h"

namespace stepfuse {

// Most forwards that are enqueued at once on a device: a request that comes joins the one behind them.
constexpr int kMostAhead = 8;

// One forward: the samples that step after it, and their rows. Or several in a row, of the same samples in the same
// rows.
struct Iteration {
  StepPlan plan;
  std::vector<Sample*> samples;  // plan.entries[i] is of samples[i]
  int steps = 1;                 // of each sample; above 1 the stepper runs their forwards

  // The sample's entry, if this is the iteration planned last; null if it has none.
  const PlanEntry* entry_of(const Sample& sample) const {
    return sample.entry < 0 ? nullptr : &plan.entries[static_cast<std::size_t>(sample.entry)];
  }
};

class Stepper {
 public:
  virtual ~Stepper() = default;
  virtual const ModelSpec& spec() const = 0;

  // Makes the sample's first state, from its noise and its known region, and gives it a slot. If this throws, nothing
  // has changed.
  virtual void begin(Sample& sample) = 0;
  // Makes the rows of the iteration hold the network's inputs; further ones, up to `rows`, hold padding that no network
  // raises for.
  virtual void stage(const Iteration& iteration, int rows) = 0;
  // Called before each forward, without the loop's lock: limits how far the host runs ahead of a device.
  virtual void throttle() {}
  // Whether steps_at_once may ever answer more than one: a look at all samples goes before it.
  virtual bool takes_several() const { return false; }
  // How many steps in a row it takes as one: asked where nothing but the ends of the iteration's samples and changes of
  // their passes alters what is planned. Above 1 `step` runs the forwards too, and the caller none.
  virtual int steps_at_once(const Iteration&) { return 1; }
  // Runs the steps of each live sample of the iteration and fills its rows of `next`, if it is planned there. Sets
  // `failed_step` of a sample whose state is not finite; a device may do so some iterations later. If this throws, no
  // sample has stepped.
  virtual void step(const Iteration& iteration, const Iteration& next) = 0;
  // Whether the host needs what the last step has written: a sample has ended, or is watched. Then synchronize, called
  // without the loop's lock, waits until states and previews are in the requests' memory.
  virtual bool needs_host_sync() const { return false; }
  virtual void synchronize() {}
  // Frees the slot of a sample that has ended.
  virtual void end(const Sample& sample) = 0;
};

// Writes the state before the first row into request.x, of `n` elements: made from the noise given there, or else the
// seed's, and from the known region's image if there is one. Copies the noise to `noise` if that is not null.
void first_state(const Request& request, std::int64_t n, float* noise);

}  // namespace stepfuse
