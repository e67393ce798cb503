// One sample from its submission to its end.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <limits>
#include <map>
#include <memory>
#include <vector>

#include "../step/known_region.h"
#include "../step/row.h"
#include "planner.h"
#include "table.h"

namespace stepfuse {

// Shared by samples that pause after each iteration in which any of them steps, until the gate is opened again.
struct Gate {
  bool open = true;                        // whether they may step
  std::atomic<const void*> loop{nullptr};  // whose samples they are; null: of none so far
};

// A time that never comes.
constexpr double kNever = std::numeric_limits<double>::infinity();

// One sample to compute. Pointers are borrowed and must outlive it.
struct Request {
  std::uint64_t id;                    // chosen by the caller; unique among the loop's samples
  std::shared_ptr<const Table> table;  // its steps
  std::uint64_t seed;                  // key of all its noise
  bool has_noise;                      // x already holds standard normal noise
  float* x;                            // (elements,) the state, in place; the result when it finishes
  float* x0;                           // (elements,) the latest predicted clean sample, a preview; null: not written
  std::vector<const void*> cond;       // a value for each conditioning input; empty: the sample has no conditioning
  std::vector<const void*> null_cond;  // the value of each that stands for "no conditioning"
  int priority = 0;                    // the higher steps first
  double deadline = kNever;            // to be finished by then; refused if that is impossible
  double expires = kNever;             // ended by then, finished or not
  bool watched = false;                // whether each step is an event
  std::shared_ptr<Gate> gate{};        // steps only while it is open, and closes it by stepping; null: none
  std::shared_ptr<const KnownRegion> known_region{};  // an image to start from or to keep in part; null: none
  std::uint64_t adapters = 0;     // the denoiser's number of its set of adapters; 0: the network without any
  std::uint64_t device_copy = 0;  // address in a GPU's memory that takes the result too, (elements,); 0: none

  std::shared_ptr<void> keep_alive{};  // owns the memory borrowed; released with the sample's last event

  bool conditioned() const { return !cond.empty(); }
  // Whether a mask keeps part of the known region (inpainting), so that the starting noise is needed at each step.
  bool keeps() const { return known_region && known_region->mask; }
};

enum class SampleState : std::uint8_t {
  Waiting,    // in the queue, nothing computed
  Running,    // has begun; steps whenever its gate is open and the plan has rows for it
  Finished,   // all its steps are done; x is the result
  Failed,     // its state was not finite, or the network raised an error for it alone
  Cancelled,  // withdrawn by the caller
  Expired,    // not finished within its timeout
};

// The samples of one set of adapters, which share forwards with each other alone.
struct SampleSet;

// An in-flight sample.
struct Sample {
  Request request;
  SampleSet* set = nullptr;
  Standing standing;  // what the policy orders it by
  Order order;        // its position in line, made from `standing`
  SampleState state = SampleState::Waiting;
  int step = 0;              // steps done: its next row is rows[step]
  int entry = -1;            // index of its entry in the plan made last, -1 if it has none
  int slot = -1;             // where the stepper holds it, from its first forward to its end
  int failed_step = -1;      // the step whose state was not finite, -1: none so far
  bool in_forward = false;   // whether the forward in progress computes its next step
  bool suspect = false;      // was in a forward that raised: its next step runs alone
  bool was_waiting = false;  // when it ended
  double submitted_at = 0;   // seconds on the loop's clock
  double begun_at = 0;       // seconds on the loop's clock
  std::exception_ptr error;  // why it failed, null if its state was not finite

  bool gate_open() const { return !request.gate || request.gate->open; }
  bool live() const { return state <= SampleState::Running; }
  const StepRow& row(int ahead = 0) const { return request.table->rows[static_cast<std::size_t>(step + ahead)]; }
  const SecondLine* second_line(int ahead = 0) const {  // null: the step has one line
    return request.table->second_line(step + ahead);
  }
  Passes passes(int ahead = 0) const { return passes_of(row(ahead), request.conditioned()); }
  int steps_left() const { return request.table->size() - step; }
  int steps_alike(int most) const {  // from its next one on, which compute the same passes
    return stepfuse::steps_alike(&row(), std::min(most, steps_left()), request.conditioned());
  }
  int passes_left(int ahead = 0) const { return request.table->passes_left(step + ahead, request.conditioned()); }
};

struct SampleSet {
  int samples = 0;                   // in flight
  std::uint64_t served = 0;          // forwards of the loop by the set's last one, or when its first sample came
  std::map<Order, Sample*> waiting;  // those in the queue
  std::int64_t waiting_rows = 0;     // of their first steps
};

// What has happened to a sample.
enum class EventKind : std::uint8_t {
  Stepped,    // a watched sample has done a step
  Finished,   // x is the result
  Failed,     // error says why; null: its state was not finite after `step` with `row`
  Cancelled,  // withdrawn by the caller
  Expired,    // not finished within its timeout
  Retried,    // its forward raised `error`: the `step` samples of it, one event each in a row, are run one by one
};

struct Event {
  EventKind kind;
  std::uint64_t id;                    // of the request
  int step;                            // steps done; Failed: the step that failed; Retried: samples of that forward
  StepRow row{};                       // Failed: the step's coefficients
  std::exception_ptr error{};          // Failed, Retried: what the network or the stepper raised
  double wait_seconds = 0;             // of an ended sample: from submission to its first forward
  double run_seconds = 0;              // of an ended sample: from there to its end
  std::shared_ptr<void> keep_alive{};  // the request's
};

}  // namespace stepfuse
