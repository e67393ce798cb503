// The loop: plan, forward, step, commit, retire. One iteration is one forward; samples join, pause and leave between
// iterations.
//
// The next iteration is planned before this iteration's step runs, because the fused step writes the next forward's
// input rows: the step has to know where its sample stands in the next batch. If somebody joins or leaves after that,
// the iteration is planned anew, and only rows that do not hold what they should are staged again.
//
// One thread at a time; server.h is what many may call.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <stdexcept>
#include <unordered_map>
#include <utility>
#include <vector>

#include "metrics.h"
#include "stepper.h"

namespace stepfuse {

struct LoopOptions {
  int max_running;  // samples that have begun and may step; behind a closed gate they do not count
  CostCurve cost;
  Policy policy = Policy::FirstCome;
  double ageing = 0;  // passes of credit that each pass computed gives to those who wait; of ShortestFirst
  bool pad = false;   // every forward has max_rows rows, so that the network computes each row in the same way
};

// A deadline that cannot be met, seen at submission.
struct DeadlineError : std::runtime_error {
  DeadlineError(double left, double needed, double passes);
};

class Loop {
 public:
  Loop(std::shared_ptr<Stepper> stepper, const LoopOptions& options);

  // `now` is in seconds on any clock that the caller keeps to.
  void check(const Request& request) const;  // throws std::invalid_argument if it could never run
  void submit(Request request, double now);  // throws the same, or DeadlineError
  bool cancel(std::uint64_t id);             // false if there is no such sample
  void open(Gate& gate);
  void cancel_all();

  // An iteration: prepare; the caller runs the forward of forward_rows(); complete, and where the stepper is
  // needs_host_sync then, the caller settles it; conclude. Or else fail, in place of complete. Samples may be
  // submitted, cancelled and gates opened at any time between these calls.
  bool prepare(double now);                             // false if there is nothing to do
  bool complete(double now);                            // false if the step could not be run: the iteration has failed
  void conclude(std::exception_ptr error, double now);  // `error`: of settling, which fails all who stepped
  void fail(std::exception_ptr error, double now);
  int forward_rows() const { return options_.pad ? spec().max_rows : iteration_.plan.rows; }

  void count_padding(int rows) { counters_.padded_rows += static_cast<std::uint64_t>(rows); }  // of the denoiser's own
  void count_callbacks(double seconds) { counters_.callback_seconds += seconds; }
  void set_cost(const CostCurve& cost) { options_.cost = cost; }
  std::vector<Event>& events() { return events_; }  // to be taken or cleared between iterations

  Stepper& stepper() { return *stepper_; }
  const ModelSpec& spec() const { return stepper_->spec(); }
  const LoopOptions& options() const { return options_; }
  const Counters& counters() const { return counters_; }

  // For invariants.h and the server: nothing below changes anything.
  using Waiting = std::map<Order, std::unique_ptr<Sample>>;
  const Iteration& iteration() const { return iteration_; }
  const std::vector<std::unique_ptr<Sample>>& running() const { return running_; }
  const Waiting& waiting() const { return waiting_; }
  std::int64_t waiting_rows() const { return waiting_rows_; }
  bool planned() const { return !stale_; }  // whether the iteration to come is planned

 private:
  // Adds the time since the last call to one of the counters, so that every moment of an iteration is counted once.
  class Stopwatch {
   public:
    void restart() { last_ = std::chrono::steady_clock::now(); }
    double add_to(double& seconds);

   private:
    std::chrono::steady_clock::time_point last_;
  };

  // What plan() plans for: the iteration to come, or the one behind the forward that has just ended.
  enum class When { Now, AfterThis };

  bool may_step(const Sample& sample, When when) const;
  Candidate candidate(const Sample& sample, When when) const;
  void plan(When when);
  bool plan_suspect();
  bool enter(double now);
  void begin(Sample& sample, double now);
  void close_gates();
  void reopen_gates();
  void end_failed(Sample& sample, const std::exception_ptr& error);
  void advance(Sample& sample);
  void end_forward(double now);
  void fail_iteration(const std::exception_ptr& error, double now);
  void require_in_time(const Sample& sample, double now) const;
  void expire(double now);
  void mark_ended(Sample& sample, SampleState state);
  void sweep(double now);
  void retire(Sample& sample, double now);

  std::shared_ptr<Stepper> stepper_;
  LoopOptions options_;
  Waiting waiting_;
  std::vector<std::unique_ptr<Sample>> running_;  // in the order of their beginning
  std::unordered_map<std::uint64_t, Sample*> by_id_;
  std::set<std::pair<double, std::uint64_t>> expiries_;  // (when, id) of those that have a timeout
  std::vector<Sample*> ended_;                           // to be retired when the iteration is over
  std::int64_t waiting_rows_ = 0;                        // that the first steps of all who wait ask for
  int suspects_ = 0;

  Iteration iteration_;                          // in progress, or to come with its input rows staged
  Iteration next_;                               // the one after it
  bool stale_ = true;                            // iteration_ is to be planned anew
  double began_ = 0;                             // when the iteration was prepared
  double recent_seconds_ = 0, recent_rows_ = 0;  // of a forward, averaged over the last ten or so

  std::vector<Candidate> candidates_;  // scratch of plan()
  std::vector<Sample*>
      candidate_samples_;  // scratch of plan(): candidates_[i] is of candidate_samples_[i] before planning
  std::vector<Event> events_;
  Counters counters_;
  Stopwatch watch_;
};

}  // namespace stepfuse
