#include "loop.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

namespace stepfuse {

Loop::Loop(std::shared_ptr<Stepper> stepper, const LoopOptions& options)
    : stepper_(std::move(stepper)), options_(options) {
  if (options.max_running < 1 || options.max_running > kMostRunning)
    throw std::invalid_argument("max_running must be at least 1 and at most " + std::to_string(kMostRunning) +
                                ", got " + std::to_string(options.max_running));
  if (!(std::isfinite(options.ageing) && options.ageing >= 0))
    throw std::invalid_argument("ageing must be finite and at least 0, got " + std::to_string(options.ageing));
  // All memory that an iteration needs, so that none allocates.
  const auto rows = static_cast<std::size_t>(spec().max_rows);
  const auto slots = static_cast<std::size_t>(options.max_running);
  running_.reserve(slots);
  candidates_.reserve(slots + rows + 1);
  candidate_samples_.reserve(slots + rows + 1);
  ended_.reserve(slots);
  for (Iteration* iteration : {&iteration_, &next_}) {
    iteration->samples.reserve(rows);
    iteration->plan.entries.reserve(rows);
    iteration->plan.chosen.reserve(slots + rows + 1);
  }
  events_.reserve(2 * rows);
}

void Loop::check(const Request& request) const {
  if (!request.table || request.table->rows.empty())
    throw std::invalid_argument("a request needs a table of at least one step");
  const std::size_t inputs = spec().cond_bytes.size();
  if ((request.conditioned() && request.cond.size() != inputs) || request.null_cond.size() != inputs)
    throw std::invalid_argument("a request needs one value for each conditioning input");
  if (request.table->passes_left(0, request.conditioned()) > request.table->size() && spec().max_rows < 2)
    throw std::invalid_argument("a guided step takes 2 rows of a forward, max_rows is 1");
  if (request.known_region && request.known_region->levels.size() != request.table->rows.size() + 1)
    throw std::invalid_argument("a known region needs one level for each step and one for the result");
  if (request.gate && request.gate->loop && request.gate->loop != this)
    throw std::invalid_argument("a gate belongs to the server whose samples it held first");
  if (std::isnan(request.deadline) || std::isnan(request.expires))
    throw std::invalid_argument("deadline and timeout must be numbers");
  if (by_id_.count(request.id)) throw std::invalid_argument("id " + std::to_string(request.id) + " is taken");
}

void Loop::submit(Request request, double now) {
  check(request);
  auto sample = std::make_unique<Sample>();
  sample->request = std::move(request);
  const Request& wanted = sample->request;
  sample->standing = {wanted.priority, counters_.submitted + 1, static_cast<double>(counters_.network_passes),
                      static_cast<double>(sample->passes_left()), wanted.deadline};
  sample->order = order_of(options_.policy, options_.ageing, sample->standing);
  sample->submitted_at = now;
  require_deadline(*sample, now);

  if (wanted.gate) wanted.gate->loop = this;
  ++counters_.submitted;
  by_id_.emplace(wanted.id, sample.get());
  sample->set = &sets_.try_emplace(wanted.adapters, SampleSet{0, counters_.forwards, {}, 0}).first->second;
  ++sample->set->samples;
  if (wanted.expires != kNever) expiries_.emplace(wanted.expires, wanted.id);
  enqueue(std::move(sample));
  stale_ = true;
}

void Loop::enqueue(std::unique_ptr<Sample> sample) {
  const int rows = rows_of(sample->passes());
  waiting_rows_ += rows;
  sample->set->waiting_rows += rows;
  const Order at = sample->order;
  sample->set->waiting.emplace(at, sample.get());
  waiting_.emplace(at, std::move(sample));
}

std::unique_ptr<Sample> Loop::dequeue(Sample& sample) {
  const int rows = rows_of(sample.passes());
  waiting_rows_ -= rows;
  sample.set->waiting_rows -= rows;
  sample.set->waiting.erase(sample.order);
  return std::move(waiting_.extract(sample.order).mapped());
}

bool Loop::cancel(std::uint64_t id) {
  const auto found = by_id_.find(id);
  if (found == by_id_.end() || !found->second->live()) return false;
  mark_ended(*found->second, SampleState::Cancelled);
  return true;
}

void Loop::open(Gate& gate) {
  if (gate.loop && gate.loop != this) throw std::invalid_argument("a gate belongs to the server whose samples it held");
  gate.open = true;
  stale_ = true;
}

void Loop::cancel_all() {
  for (const auto& [id, sample] : by_id_)
    if (sample->live()) mark_ended(*sample, SampleState::Cancelled);
}

bool Loop::prepare(double now) {
  watch_.restart();
  expire(now);
  do {
    if (!stale_) continue;
    retire_ended(now);
    if (suspects_ == 0 || !plan_suspect()) plan(Lookahead::None);
    std::swap(iteration_, next_);
    stale_ = false;
  } while (!start_iteration(now));
  began_ = now;
  iteration_.steps = 1;
  for (Sample* sample : iteration_.samples) sample->in_forward = true;
  watch_.add_to(counters_.loop_seconds);
  return !iteration_.plan.empty();
}

// Whether the samples of the iteration are all there are, and none of them has a reader between two steps.
bool Loop::settled() const {
  const auto goes_on = [](const Sample* sample) {
    return sample->live() && sample->failed_step < 0 && !sample->request.watched && !sample->request.gate;
  };
  return !stale_ && waiting_.empty() && suspects_ == 0 && iteration_.samples.size() == running_.size() &&
         std::all_of(iteration_.samples.begin(), iteration_.samples.end(), goes_on);
}

bool Loop::extend() {
  iteration_.steps = stepper_->takes_several() && settled() ? stepper_->steps_at_once(iteration_) : 1;
  return iteration_.steps > 1;
}

bool Loop::step(double now) {
  count_forward(now);
  expire(now);
  close_gates();
  stale_ = suspects_ > 0;  // each of them runs alone: the iteration after that cannot be planned yet
  if (stale_) {
    for (Sample* sample : iteration_.samples) sample->entry = -1;
  } else {
    plan(Lookahead::Stepped);  // includes what was submitted and cancelled during the forward
  }
  watch_.add_to(counters_.loop_seconds);
  try {
    stepper_->step(iteration_, next_);
  } catch (...) {
    roll_back(std::current_exception(), now);
    return false;
  }
  return true;
}

void Loop::commit(std::exception_ptr error, double now) {
  watch_.add_to(counters_.step_seconds);
  reopen_gates();
  if (!error) close_gates();  // again, without those whose samples have all ended since
  for (Sample* sample : iteration_.samples) {
    if (error || sample->failed_step >= 0) mark_failed(*sample, error);
    advance(*sample);
  }
  retire_ended(now);
  std::swap(iteration_, next_);
  watch_.add_to(counters_.loop_seconds);
}

void Loop::fail(std::exception_ptr error, double now) {
  count_forward(now);
  ++counters_.failed_forwards;
  roll_back(error, now);
}

// Undoes the iteration in progress: its samples are tried again, each alone. One that was alone fails.
void Loop::roll_back(const std::exception_ptr& error, double now) {
  reopen_gates();
  const bool alone = iteration_.samples.size() == 1;
  const auto retried = [&](const Sample* sample) { return sample->live() && sample->failed_step < 0 && !alone; };
  const auto suspects = static_cast<int>(std::count_if(iteration_.samples.begin(), iteration_.samples.end(), retried));
  for (Sample* sample : iteration_.samples) {
    sample->in_forward = false;
    if (!retried(sample)) {
      mark_failed(*sample, error);
      continue;
    }
    suspects_ += !sample->suspect;
    sample->suspect = true;
    Event event{EventKind::Retried, sample->request.id, suspects};
    event.error = error;
    event.keep_alive = sample->request.keep_alive;
    events_.push_back(std::move(event));
  }
  stale_ = true;
  retire_ended(now);
}

// A sample that has ended already stays as it is, but takes the error along, so that it is released with the event and
// not under a lock.
void Loop::mark_failed(Sample& sample, const std::exception_ptr& error) {
  if (sample.failed_step < 0) sample.error = error;  // the first failure is the one reported
  if (sample.live()) mark_ended(sample, SampleState::Failed);
}

bool Loop::may_step(const Sample& sample, Lookahead lookahead) const {
  if (!sample.live() || !sample.gate_open()) return false;
  return lookahead == Lookahead::None || !sample.in_forward || sample.steps_left() > iteration_.steps;
}

Candidate Loop::candidate(const Sample& sample, Lookahead lookahead) const {
  const int ahead = lookahead == Lookahead::Stepped && sample.in_forward ? iteration_.steps : 0;
  Order order = sample.order;
  if (ahead > 0) {
    Standing standing = sample.standing;
    standing.passes_left = sample.passes_left(ahead);
    order = order_of(options_.policy, options_.ageing, standing);
  }
  return {order, sample.passes(ahead), -1, sample.request.adapters, sample.set->served};
}

void Loop::plan(Lookahead lookahead) {
  candidates_.clear();
  candidate_samples_.clear();
  std::int64_t rows_wanted = waiting_rows_;
  int slots = options_.max_running;
  for (const auto& sample : running_) {
    sample->entry = -1;
    if (!may_step(*sample, lookahead)) continue;
    --slots;
    offer(*sample, lookahead);
    rows_wanted += rows_of(candidates_.back().passes);
  }
  const std::size_t running = candidates_.size();
  const auto joins = static_cast<std::size_t>(std::clamp(slots, 0, spec().max_rows));
  for (const auto& [adapters, set] : sets_) offer_waiting(set, joins, lookahead);
  const CostCurve cost = options_.pad ? CostCurve{} : options_.cost;  // padded, all forwards cost the same
  make_plan(candidates_, running, rows_wanted, {spec().max_rows, slots, cost}, next_.plan);
  next_.samples.clear();
  for (std::size_t i = 0; i < next_.plan.entries.size(); ++i) {
    Sample* sample = candidate_samples_[static_cast<std::size_t>(next_.plan.entries[i].sample)];
    sample->entry = static_cast<int>(i);
    next_.samples.push_back(sample);
  }
}

// Offers no more waiting samples of a set than rows can step: a long queue costs an iteration nothing. And one more
// that takes one row, for the row that guided ones may leave.
void Loop::offer_waiting(const SampleSet& set, std::size_t most, Lookahead lookahead) {
  if (most == 0) return;
  const std::size_t offered = candidates_.size() + most;
  std::int64_t small_left = 2 * static_cast<std::int64_t>(set.waiting.size()) - set.waiting_rows;
  for (const auto& [order, sample] : set.waiting) {
    const bool full = candidates_.size() >= offered, small = rows_of(sample->passes()) == 1;
    if (full && (small_left == 0 || candidates_.size() > offered)) break;
    small_left -= small;
    sample->entry = -1;
    if ((full && !small) || !may_step(*sample, lookahead)) continue;
    offer(*sample, lookahead);
  }
}

void Loop::offer(Sample& sample, Lookahead lookahead) {
  candidates_.push_back(candidate(sample, lookahead));
  candidate_samples_.push_back(&sample);
}

// The iteration is the first suspect's alone; false if none may step.
bool Loop::plan_suspect() {
  next_.plan.clear();
  next_.samples.clear();
  for (const auto& sample : running_) {
    sample->entry = -1;
    if (!sample->suspect || !next_.samples.empty() || !may_step(*sample, Lookahead::None)) continue;
    next_.plan.add(0, sample->passes());
    next_.samples.push_back(sample.get());
    sample->entry = 0;
  }
  return !next_.plan.empty();
}

// Begins the waiting samples of iteration_ and stages what its rows do not hold yet. False if that failed: the
// iteration has to be planned again.
bool Loop::start_iteration(double now) {
  for (Sample* sample : iteration_.samples) {
    if (sample->state != SampleState::Waiting) continue;
    try {
      stepper_->begin(*sample);
    } catch (...) {
      sample->error = std::current_exception();
      mark_ended(*sample, SampleState::Failed);
      return false;
    }
    start_running(*sample, now);
  }
  if (iteration_.plan.empty()) return true;
  try {
    stepper_->stage(iteration_, forward_rows());
  } catch (...) {
    roll_back(std::current_exception(), now);
    return false;
  }
  return true;
}

void Loop::start_running(Sample& sample, double now) {
  running_.push_back(dequeue(sample));
  sample.state = SampleState::Running;
  sample.begun_at = now;
  counters_.wait_seconds.add(now - sample.submitted_at);
}

// Samples behind a gate that step in the iteration close it.
void Loop::close_gates() {
  for (Sample* sample : iteration_.samples)
    if (sample->request.gate && sample->live()) sample->request.gate->open = false;
}

void Loop::reopen_gates() {
  for (Sample* sample : iteration_.samples)
    if (sample->request.gate) sample->request.gate->open = true;
}

// Commits the step that the sample has done.
void Loop::advance(Sample& sample) {
  sample.in_forward = false;
  suspects_ -= sample.suspect;
  sample.suspect = false;
  if (!sample.live()) return;
  sample.step += iteration_.steps;
  counters_.steps += static_cast<std::uint64_t>(iteration_.steps);
  if (sample.request.watched) {
    Event event{EventKind::Stepped, sample.request.id, sample.step};
    event.keep_alive = sample.request.keep_alive;
    events_.push_back(std::move(event));
  }
  if (sample.steps_left() == 0) {
    sample.state = SampleState::Finished;
    ended_.push_back(&sample);
    return;
  }
  sample.standing.passes_left = sample.passes_left();
  sample.order = order_of(options_.policy, options_.ageing, sample.standing);
}

void Loop::count_forward(double now) {
  const int rows = iteration_.plan.rows;
  const auto forwards = static_cast<std::uint64_t>(iteration_.steps);
  const double each = 1.0 / iteration_.steps;
  counters_.forward_seconds.add(watch_.add_to(counters_.network_seconds) * each, forwards);
  counters_.forward_rows.add(rows, forwards);
  counters_.forwards += forwards;
  for (const Sample* sample : iteration_.samples) sample->set->served = counters_.forwards;
  counters_.network_passes += forwards * static_cast<std::uint64_t>(rows);
  counters_.padded_rows += forwards * static_cast<std::uint64_t>(forward_rows() - rows);
  if (counters_.forwards > 1) recent_.add(rows, (now - began_) * each);  // the first one allocates and warms up
}

// Throws DeadlineError if the estimate exceeds the deadline: by the cost curve, or by the recent forwards where none is
// known. Before the first forward nothing is refused, nor by an idle loop without a curve: its recent forwards may be
// long past, and refusals would keep them from being replaced.
void Loop::require_deadline(const Sample& sample, double now) const {
  if (sample.standing.deadline == kNever) return;
  double passes_ahead = 0;
  std::int64_t rows_wanted = waiting_rows_ + rows_of(sample.passes());
  for (const auto& [id, other] : by_id_) {
    if (!other->live()) continue;
    if (other->order < sample.order) passes_ahead += other->passes_left();
    if (other->state != SampleState::Waiting) rows_wanted += rows_of(other->passes());
  }
  double rows = recent_.rows(), seconds = recent_.seconds();
  if (options_.cost.known()) {
    const int max_rows = spec().max_rows;
    const int planned = options_.pad ? max_rows : rows_worthwhile(options_.cost, rows_wanted, max_rows);
    rows = planned;
    seconds = options_.cost.seconds(planned);
  } else if (by_id_.empty()) {
    return;
  }
  if (rows == 0) return;
  const double needed = (passes_ahead / rows + sample.steps_left()) * seconds;
  if (now + needed > sample.standing.deadline)
    throw DeadlineError(sample.standing.deadline - now, needed, passes_ahead);
}

void Loop::expire(double now) {
  for (auto at = expiries_.cbegin(); at != expiries_.cend() && at->first <= now; ++at) {
    Sample& sample = *by_id_.at(at->second);
    if (sample.live() && !sample.in_forward) mark_ended(sample, SampleState::Expired);
  }
}

void Loop::mark_ended(Sample& sample, SampleState state) {
  sample.was_waiting = sample.state == SampleState::Waiting;
  sample.state = state;
  ended_.push_back(&sample);
  stale_ = true;
}

// Retires the samples that have ended.
void Loop::retire_ended(double now) {
  if (ended_.empty()) return;
  for (Sample* sample : ended_) {
    retire(*sample, now);
    SampleSet& set = *sample->set;
    const std::uint64_t adapters = sample->request.adapters;
    if (sample->was_waiting) dequeue(*sample);
    if (--set.samples == 0) sets_.erase(adapters);
  }
  const auto ended = [](const std::unique_ptr<Sample>& sample) { return !sample->live(); };
  running_.erase(std::remove_if(running_.begin(), running_.end(), ended), running_.end());
  ended_.clear();
}

void Loop::retire(Sample& sample, double now) {
  Event event{EventKind::Finished, sample.request.id, sample.step};
  const bool begun = !sample.was_waiting;
  if (begun) stepper_->end(sample);
  event.wait_seconds = (begun ? sample.begun_at : now) - sample.submitted_at;
  event.run_seconds = begun ? now - sample.begun_at : 0;
  switch (sample.state) {
    case SampleState::Finished:
      ++counters_.samples;
      counters_.deadline_misses += now > sample.standing.deadline;
      counters_.latency_seconds.add(now - sample.submitted_at);
      break;
    case SampleState::Failed:
      ++counters_.failures;
      event.kind = EventKind::Failed;
      if (sample.failed_step >= 0) {
        event.step = sample.failed_step;
        event.row = sample.request.table->rows[static_cast<std::size_t>(sample.failed_step)];
      }
      break;
    case SampleState::Expired:
      ++counters_.expired;
      event.kind = EventKind::Expired;
      break;
    default:
      ++counters_.cancelled;
      event.kind = EventKind::Cancelled;
  }
  event.error = std::move(sample.error);
  event.keep_alive = std::move(sample.request.keep_alive);
  events_.push_back(std::move(event));
  suspects_ -= sample.suspect;
  by_id_.erase(sample.request.id);
  if (sample.request.expires != kNever) expiries_.erase({sample.request.expires, sample.request.id});
}

}  // namespace stepfuse
