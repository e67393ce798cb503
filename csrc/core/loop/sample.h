// One sample from its submission to its end.
#pragma once

#include <cstdint>
#include <exception>
#include <limits>
#include <memory>
#include <vector>

#include "../step/adapt.h"
#include "../step/known_region.h"
#include "../step/row.h"
#include "planner.h"

namespace stepfuse {

struct Table {
  Table(std::vector<StepRow> rows, float init_scale, const Adaptive& adaptive = {});

  int size() const { return static_cast<int>(rows.size()); }
  int passes_left(int step, bool conditioned) const {
    return conditioned ? conditioned_passes[static_cast<std::size_t>(step)] : size() - step;
  }

  std::vector<StepRow> rows;
  float init_scale;  // the first state is init_scale times standard normal noise
  Adaptive adaptive;
  bool uses_history;                    // any row reads or keeps a history
  std::vector<int> conditioned_passes;  // from step i to the end, of a sample that is told something
};

// Shared by samples that wait for their owner after each iteration that any of them steps in.
struct Gate {
  bool open = true;
};

constexpr double kNever = std::numeric_limits<double>::infinity();

// One sample to draw. Pointers are borrowed and must outlive it.
struct Request {
  std::uint64_t id;  // the caller's name for it; unique among the loop's samples
  std::shared_ptr<const Table> table;
  std::uint64_t seed;                  // key of all its noise
  bool has_noise;                      // x already holds standard normal noise
  float* x;                            // (elements,) the state, in place; the result when it finishes
  float* x0;                           // (elements,) the latest predicted clean sample; null if nobody looks
  std::vector<const void*> cond;       // a value for each conditioning input; empty: the sample is told nothing
  std::vector<const void*> null_cond;  // the value of each that stands for "no condition"
  int priority = 0;                    // the higher steps first
  double deadline = kNever;            // wanted by then; refused if that cannot be
  double expires = kNever;             // given up by then
  bool watched = false;                // an event each step
  std::shared_ptr<Gate> gate{};        // steps only while it is open, and closes it by stepping; null: none
  std::shared_ptr<const KnownRegion> known_region{};  // an image to start from or to keep in part; null: none

  std::shared_ptr<void> keep_alive{};  // whatever owns the memory borrowed; let go when the sample's last event is

  bool conditioned() const { return !cond.empty(); }
  bool keeps() const { return known_region && known_region->mask; }
};

enum class SampleState : std::uint8_t {
  Waiting,    // in the queue, nothing computed
  Running,    // has begun; steps whenever its gate is open and the plan has rows for it
  Finished,   // all its steps are done; x is the result
  Failed,     // its state was not finite, or the network raised an error for it alone
  Cancelled,  // withdrawn
  Expired,    // ran out of time
};

struct Sample {
  Request request;
  Standing standing;
  Order order;
  SampleState state = SampleState::Waiting;
  int step = 0;              // steps done: its next row is rows[step]
  int entry = -1;            // its place in the plan made last, -1 if it has none
  int slot = -1;             // where the stepper holds it, from its beginning to its end
  int failed_step = -1;      // whose state was not finite, -1: none so far
  bool in_forward = false;   // the forward in progress computes its next step
  bool suspect = false;      // was in a forward that raised: is run alone next
  bool was_waiting = false;  // when it ended
  double submitted_at = 0;
  double begun_at = 0;
  std::exception_ptr error;

  bool gate_open() const { return !request.gate || request.gate->open; }
  bool live() const { return state <= SampleState::Running; }
  const StepRow& row(int ahead = 0) const { return request.table->rows[static_cast<std::size_t>(step + ahead)]; }
  Passes passes(int ahead = 0) const { return passes_of(row(ahead), request.conditioned()); }
  int steps_left() const { return request.table->size() - step; }
  int passes_left(int ahead = 0) const { return request.table->passes_left(step + ahead, request.conditioned()); }
};

enum class EventKind : std::uint8_t {
  Stepped,   // a watched sample has done a step
  Finished,  // x is the result
  Failed,    // error says why; null: its state was not finite after `step` with `row`
  Cancelled,
  Expired,
  Retried,  // its forward raised `error`: its `step` samples, told one after the other, are run one by one
};

struct Event {
  EventKind kind;
  std::uint64_t id;
  int step;       // steps done; Failed: the step that failed
  StepRow row{};  // Failed: its coefficients
  std::exception_ptr error{};
  double wait_seconds = 0;  // from submission to the first step
  double run_seconds = 0;   // from there to now
  std::shared_ptr<void> keep_alive{};
};

}  // namespace stepfuse
