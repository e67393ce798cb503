// The loop: plan, forward, step, commit, retire. One turn is one forward; samples join and leave between turns.
//
// The next turn is planned before this turn's step runs, because the fused step writes the next forward's input rows:
// the step has to know where its sample stands in the next batch. Conditioning is copied only into rows that changed
// hands.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <utility>
#include <vector>

#include "denoiser.h"
#include "planner.h"
#include "step_row.h"

namespace stepfuse {

struct Table {
  Table(std::vector<StepRow> rows, float init_scale);

  std::vector<StepRow> rows;
  float init_scale;      // the first state is init_scale times standard normal noise
  bool uses_history;     // any row reads or keeps a history
  int last_guided = -1;  // last row that needs both passes, -1 if none does
};

// One sample to draw. Pointers are borrowed and must outlive the request.
struct Request {
  std::uint64_t id;  // the caller's name for it; unique among the loop's samples
  std::shared_ptr<const Table> table;
  std::uint64_t seed;                  // key of all its noise
  bool has_noise;                      // x already holds standard normal noise
  float* x;                            // (elements,) the state, in place; the result when it finishes
  float* x0;                           // (elements,) the latest predicted clean sample; null if nobody looks
  std::vector<const void*> cond;       // a value for each conditioning input; empty: the sample is told nothing
  std::vector<const void*> null_cond;  // the value of each that stands for "no condition"

  std::shared_ptr<void> keep_alive;  // whatever owns the memory borrowed; let go when the sample leaves the loop

  bool conditioned() const { return !cond.empty(); }
};

enum class SampleState : std::uint8_t {
  Waiting,   // in the queue, nothing computed
  Running,   // has a place in every forward
  Finished,  // all its steps are done; x is the result
  Failed,    // a prediction or its state was not finite
};

struct Sample {
  Request request;
  std::uint64_t serial = 0;  // unique in this loop's life
  SampleState state = SampleState::Waiting;
  int step = 0;  // steps done: its next row is rows[step]
  std::vector<float> history;

  const StepRow& row(int ahead = 0) const { return request.table->rows[static_cast<std::size_t>(step + ahead)]; }
  int steps_left() const { return static_cast<int>(request.table->rows.size()) - step; }
};

struct Failure {
  std::uint64_t id;
  int step;
  StepRow row;  // the coefficients of the step that failed
};

struct Counters {
  std::uint64_t samples = 0;         // finished
  std::uint64_t failures = 0;        // samples that went non-finite
  std::uint64_t steps = 0;           // fused steps, one a sample and step
  std::uint64_t forwards = 0;        // network calls
  std::uint64_t network_passes = 0;  // rows of them that a sample asked for
  double network_seconds = 0;        // inside the denoiser
  double step_seconds = 0;           // inside the fused step and the noise
  double loop_seconds = 0;           // planning, staging, committing: everything else
};

class Loop {
 public:
  explicit Loop(const ModelSpec& spec);

  ForwardBuffers& buffers() { return buffers_; }
  void submit(Request request);  // throws std::invalid_argument if it could never run

  // One turn. False if there was nothing to do. If the denoiser throws, nothing has moved: the turn may be tried again.
  bool turn(Denoiser& denoiser);
  void abort();  // forgets every sample, waiting and running

  const std::vector<Sample>& running() const { return running_; }
  const std::deque<Sample>& waiting() const { return waiting_; }
  const StepPlan& plan() const { return plan_; }
  const PlanLimits& limits() const { return limits_; }
  const ModelSpec& spec() const { return buffers_.spec; }
  const Counters& counters() const { return counters_; }
  std::vector<Failure> take_failures();

 private:
  // The input row's owner, so that conditioning is copied only when the row changes hands.
  struct RowOwner {
    std::uint64_t serial = 0;
    bool conditional = false;
  };

  SampleView view(const Sample& sample, int ahead) const;
  void plan_next(int ahead);
  void admit();
  void step(Sample& sample, const PlanEntry& entry, const PlanEntry* next);
  void commit();
  void stage_state(const Sample& sample, const PlanEntry& entry);
  void stage_model_inputs(const Sample& sample, const StepRow& row, const PlanEntry& entry);
  void claim_row(int row, const Sample& sample, float t, bool conditional);

  ForwardBuffers buffers_;
  PlanLimits limits_;
  std::deque<Sample> waiting_;
  std::vector<Sample> running_;
  StepPlan plan_;  // of the turn to come; its input rows are staged
  StepPlan next_;  // of the turn after it
  std::vector<RowOwner> owners_;
  std::vector<SampleView> running_views_, waiting_views_;  // scratch of the planner
  AlignedBuffer noise_;                                    // (elements,) scratch of one step
  Counters counters_;
  std::vector<Failure> failures_;
  std::uint64_t serial_ = 0;
};

}  // namespace stepfuse
