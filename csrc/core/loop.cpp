#include "loop.h"

#include <algorithm>
#include <chrono>
#include <stdexcept>

#include "noise.h"
#include "step_cpu.h"

namespace stepfuse {

namespace {

// Adds the time since the last call to one of the counters, so that every moment of a turn is counted once.
class Stopwatch {
 public:
  void add_to(double& seconds) {
    const auto now = std::chrono::steady_clock::now();
    seconds += std::chrono::duration<double>(now - last_).count();
    last_ = now;
  }

 private:
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

}  // namespace

Table::Table(std::vector<StepRow> table_rows, float scale) : rows(std::move(table_rows)), init_scale(scale) {
  uses_history = false;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    uses_history = uses_history || rows[i].reads_history() || rows[i].keeps_history();
    if (passes_of(rows[i], true) == Passes::Both) last_guided = static_cast<int>(i);
  }
}

Loop::Loop(const ModelSpec& spec)
    : buffers_(spec),
      limits_{spec.max_rows},
      owners_(static_cast<std::size_t>(spec.max_rows)),
      noise_(static_cast<std::size_t>(spec.elements) * sizeof(float)) {}

void Loop::submit(Request request) {
  if (!request.table || request.table->rows.empty())
    throw std::invalid_argument("a request needs a table of at least one step");
  const std::size_t inputs = buffers_.cond.size();
  if ((request.conditioned() && request.cond.size() != inputs) || request.null_cond.size() != inputs)
    throw std::invalid_argument("a request needs one value for each conditioning input");
  Sample sample;
  sample.request = std::move(request);
  sample.serial = ++serial_;
  if (view(sample, 0).peak_rows > limits_.max_rows)
    throw std::invalid_argument("a guided step takes 2 rows of a forward, max_rows is " +
                                std::to_string(limits_.max_rows));
  waiting_.push_back(std::move(sample));
}

bool Loop::turn(Denoiser& denoiser) {
  Stopwatch watch;
  if (plan_.empty()) {
    plan_next(0);
    std::swap(plan_, next_);
    admit();
    if (plan_.empty()) return false;
  }
  watch.add_to(counters_.loop_seconds);
  denoiser.forward(plan_.rows);
  watch.add_to(counters_.network_seconds);
  ++counters_.forwards;
  counters_.network_passes += static_cast<std::uint64_t>(plan_.rows);

  plan_next(1);
  watch.add_to(counters_.loop_seconds);
  auto next = next_.entries.cbegin();
  for (const PlanEntry& entry : plan_.entries) {
    Sample& sample = running_[static_cast<std::size_t>(entry.sample)];
    step(sample, entry, sample.steps_left() > 1 ? &*next++ : nullptr);
  }
  watch.add_to(counters_.step_seconds);
  commit();
  watch.add_to(counters_.loop_seconds);
  return true;
}

void Loop::abort() {
  waiting_.clear();
  running_.clear();
  plan_ = StepPlan{};
}

std::vector<Failure> Loop::take_failures() { return std::exchange(failures_, {}); }

SampleView Loop::view(const Sample& sample, int ahead) const {
  const bool conditioned = sample.request.conditioned();
  const bool guided_ahead = conditioned && sample.step + ahead <= sample.request.table->last_guided;
  return {passes_of(sample.row(ahead), conditioned), guided_ahead ? 2 : 1};
}

// Plans the forward `ahead` steps from now; samples that will have finished by then are left out.
void Loop::plan_next(int ahead) {
  running_views_.clear();
  waiting_views_.clear();
  for (const Sample& sample : running_)
    if (sample.steps_left() > ahead) running_views_.push_back(view(sample, ahead));
  // No more waiting samples than rows can be admitted: a long queue costs nothing a turn.
  const auto candidates = std::min(waiting_.size(), static_cast<std::size_t>(limits_.max_rows));
  for (std::size_t i = 0; i < candidates; ++i) waiting_views_.push_back(view(waiting_[i], 0));
  make_plan(running_views_, waiting_views_, limits_, next_);
}

// Takes the samples that plan_ admits from the queue and stages their first inputs.
void Loop::admit() {
  for (int i = 0; i < plan_.admitted; ++i) {
    Sample& sample = running_.emplace_back(std::move(waiting_.front()));
    waiting_.pop_front();
    sample.state = SampleState::Running;
    const Request& request = sample.request;
    const auto n = buffers_.spec.elements;
    if (request.table->uses_history) sample.history.assign(static_cast<std::size_t>(n), 0.0f);
    if (!request.has_noise) fill_normal(request.seed, 0, NoiseStream::InitialState, 0, n, request.x);
    for (std::int64_t k = 0; k < n; ++k) request.x[k] *= request.table->init_scale;
    stage_state(sample, plan_.entries[running_.size() - 1]);
  }
}

void Loop::step(Sample& sample, const PlanEntry& entry, const PlanEntry* next) {
  const Request& request = sample.request;
  const StepRow& row = sample.row();
  const bool guided = entry.row_cond >= 0 && entry.row_uncond >= 0;
  StepSpan<float> span{};
  span.n = buffers_.spec.elements;
  span.x = span.out = request.x;
  span.eps = buffers_.prediction_row(entry.row_cond >= 0 ? entry.row_cond : entry.row_uncond);
  span.eps_uncond = guided ? buffers_.prediction_row(entry.row_uncond) : nullptr;
  span.h = sample.history.empty() ? nullptr : sample.history.data();
  span.x0 = request.x0;
  if (row.adds_noise()) {
    auto* noise = static_cast<float*>(noise_.data());
    fill_normal(request.seed, static_cast<std::uint32_t>(sample.step), NoiseStream::Step, 0, span.n, noise);
    span.z = noise;
  }
  if (next) {
    const StepRow& next_row = sample.row(1);
    span.next_cond = next->row_cond >= 0 ? buffers_.sample_row(next->row_cond) : nullptr;
    span.next_uncond = next->row_uncond >= 0 ? buffers_.sample_row(next->row_uncond) : nullptr;
    span.next_scale = next_row.s;
    stage_model_inputs(sample, next_row, *next);
  }
  if (!fused_step(row, span)) {
    sample.state = SampleState::Failed;
    failures_.push_back({request.id, sample.step, row});
  }
}

// Advances what stepped, retires what finished or failed, lets the planned newcomers in.
void Loop::commit() {
  bool failed = false;
  for (const PlanEntry& entry : plan_.entries) {
    Sample& sample = running_[static_cast<std::size_t>(entry.sample)];
    failed = failed || sample.state == SampleState::Failed;
    if (sample.state == SampleState::Failed) {
      ++counters_.failures;
    } else if (++sample.step; sample.steps_left() == 0) {
      sample.state = SampleState::Finished;
      ++counters_.samples;
    }
  }
  counters_.steps += plan_.entries.size();
  const auto gone = [](const Sample& sample) { return sample.state != SampleState::Running; };
  running_.erase(std::remove_if(running_.begin(), running_.end(), gone), running_.end());
  if (failed) {  // the next plan counted on it: plan again without it, and stage everyone anew
    plan_next(0);
    for (std::size_t i = 0; i < running_.size(); ++i) stage_state(running_[i], next_.entries[i]);
  }
  std::swap(plan_, next_);
  admit();
}

void Loop::stage_state(const Sample& sample, const PlanEntry& entry) {
  const StepRow& row = sample.row();
  for (const int target : {entry.row_cond, entry.row_uncond}) {
    if (target < 0) continue;
    float* input = buffers_.sample_row(target);
    for (std::int64_t k = 0; k < buffers_.spec.elements; ++k) input[k] = row.s * sample.request.x[k];
  }
  stage_model_inputs(sample, row, entry);
}

void Loop::stage_model_inputs(const Sample& sample, const StepRow& row, const PlanEntry& entry) {
  if (entry.row_cond >= 0) claim_row(entry.row_cond, sample, row.t, true);
  if (entry.row_uncond >= 0) claim_row(entry.row_uncond, sample, row.t, false);
}

void Loop::claim_row(int row, const Sample& sample, float t, bool conditional) {
  buffers_.set_timestep(row, t);
  RowOwner& owner = owners_[static_cast<std::size_t>(row)];
  if (owner.serial == sample.serial && owner.conditional == conditional) return;
  owner = {sample.serial, conditional};
  const auto& values = conditional ? sample.request.cond : sample.request.null_cond;
  for (std::size_t input = 0; input < values.size(); ++input) buffers_.set_cond(input, row, values[input]);
}

}  // namespace stepfuse
