// The loop: plan, forward, step, commit, retire. One iteration is one forward; samples join, pause and leave between
// iterations.
//
// The next iteration is planned before this iteration's step runs, because the fused step writes the next forward's
// input rows: the step has to know which rows its sample has there. If a sample joins or leaves after that, the
// iteration is planned again, and only rows that do not hold what they should are staged again.
//
// For one thread at a time; server.h is for many threads.
#pragma once

#include <cstdint>
#include <exception>
#include <map>
#include <memory>
#include <set>
#include <unordered_map>
#include <utility>
#include <vector>

#include "deadline.h"
#include "metrics.h"
#include "stepper.h"

namespace stepfuse {

struct LoopOptions {
  int max_running;                    // samples that have begun and may step; behind a closed gate they do not count
  CostCurve cost;                     // of a forward, for the planner
  Policy policy = Policy::FirstCome;  // which sample steps first
  double ageing = 0;  // of ShortestFirst: passes of credit that a waiting sample gains per pass computed
  bool pad = false;   // every forward has max_rows rows, so that the network computes each row in the same way
};

class Loop {
 public:
  static constexpr int kMostRunning = 1 << 20;
  // Throws std::invalid_argument if max_running is below 1 or above kMostRunning, or ageing is negative or not finite.
  Loop(std::shared_ptr<Stepper> stepper, const LoopOptions& options);

  // `now` is in seconds on any clock, the same one in each call.
  //
  // Throws std::invalid_argument if the request could never run: its table is empty, it lacks a value for a
  // conditioning input, a guided step does not fit a forward, its known region lacks a level, a time is NaN, or its id
  // is taken.
  void check(const Request& request) const;
  void submit(Request request, double now);  // throws what check throws, or DeadlineError if its deadline cannot be met
  bool cancel(std::uint64_t id);             // false if there is no such sample, or it has ended
  void open(Gate& gate);                     // throws std::invalid_argument if it is another loop's
  void cancel_all();

  // An iteration: prepare; the caller throttles the stepper; extend; unless that returns true, the caller runs the
  // forward of forward_rows(); step; the caller synchronizes the stepper if it needs_host_sync(); commit. If the
  // forward raises, fail replaces step and commit. Between these calls samples may be submitted and cancelled, and
  // gates opened.
  bool prepare(double now);                           // false if there is nothing to do
  bool extend();                                      // true: the iteration is several, with their forwards
  bool step(double now);                              // false if the step raised: the iteration has been rolled back
  void commit(std::exception_ptr error, double now);  // `error`: of synchronizing; it fails all samples that stepped
  void fail(std::exception_ptr error, double now);    // rolls the iteration back
  int forward_rows() const { return options_.pad ? spec().max_rows : iteration_.plan.rows; }
  // The set of adapters of all samples of the iteration.
  std::uint64_t forward_adapters() const {
    return iteration_.samples.empty() ? 0 : iteration_.samples.front()->request.adapters;
  }

  // Rows that the denoiser added to each forward of the iteration.
  void count_padding(int rows) { counters_.padded_rows += static_cast<std::uint64_t>(rows * iteration_.steps); }
  void count_callbacks(double seconds) { counters_.callback_seconds += seconds; }
  void set_cost(const CostCurve& cost) { options_.cost = cost; }
  std::vector<Event>& events() { return events_; }  // to be taken or cleared between iterations
  const std::vector<Event>& events() const { return events_; }

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
  bool planned() const { return !stale_; }  // whether iteration() is the iteration to come

 private:
  // Which state of the samples plan() plans for.
  enum class Lookahead {
    None,     // as they are
    Stepped,  // those in the forward as they will be after the iteration
  };

  bool settled() const;
  bool may_step(const Sample& sample, Lookahead lookahead) const;
  Candidate candidate(const Sample& sample, Lookahead lookahead) const;
  void enqueue(std::unique_ptr<Sample> sample);
  std::unique_ptr<Sample> dequeue(Sample& sample);
  void plan(Lookahead lookahead);
  void offer_waiting(const SampleSet& set, std::size_t most, Lookahead lookahead);
  void offer(Sample& sample, Lookahead lookahead);
  bool plan_suspect();
  bool start_iteration(double now);
  void start_running(Sample& sample, double now);
  void close_gates();
  void reopen_gates();
  void mark_failed(Sample& sample, const std::exception_ptr& error);
  void advance(Sample& sample);
  void count_forward(double now);
  void roll_back(const std::exception_ptr& error, double now);
  void require_deadline(const Sample& sample, double now) const;
  void expire(double now);
  void mark_ended(Sample& sample, SampleState state);
  void retire_ended(double now);
  void retire(Sample& sample, double now);

  std::shared_ptr<Stepper> stepper_;
  LoopOptions options_;
  Waiting waiting_;
  std::vector<std::unique_ptr<Sample>> running_;         // in the order in which they began
  std::unordered_map<std::uint64_t, Sample*> by_id_;     // all of both
  std::map<std::uint64_t, SampleSet> sets_;              // all of both, by their sets of adapters
  std::set<std::pair<double, std::uint64_t>> expiries_;  // (when, id) of those that have a timeout
  std::vector<Sample*> ended_;                           // to be retired when the iteration is over
  std::int64_t waiting_rows_ = 0;                        // of the first steps of all waiting samples
  int suspects_ = 0;                                     // samples that are `suspect`

  Iteration iteration_;  // in progress, or to come with its input rows staged
  Iteration next_;       // the one after it
  bool stale_ = true;    // iteration_ has to be planned again
  double began_ = 0;     // when the iteration was prepared
  RecentForwards recent_;

  std::vector<Candidate> candidates_;       // scratch of plan()
  std::vector<Sample*> candidate_samples_;  // scratch of plan(), by the index of the candidate
  std::vector<Event> events_;
  Counters counters_;
  Stopwatch watch_;
};

}  // namespace stepfuse
