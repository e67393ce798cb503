#include "invariants.h"

#include <set>

namespace stepfuse {

namespace {

class Report {
 public:
  void require(bool holds, const std::string& rule) {
    if (!holds) found.push_back(rule);
  }
  std::vector<std::string> found;
};

std::string name_of(const Sample& sample) { return "sample " + std::to_string(sample.request.id); }

void check_life_cycles(const Loop& loop, Report& report) {
  std::set<std::uint64_t> arrivals;
  std::set<int> slots;
  int ungated = 0;  // paused gated samples make room for others, and may go on when there is none left
  for (const auto& sample : loop.running()) {
    ungated += !sample->request.gate;
    const std::string name = name_of(*sample);
    report.require(sample->state != SampleState::Waiting, name + ": has begun, but its state is Waiting");
    report.require(!sample->live() || sample->steps_left() > 0, name + ": has no step left");
    report.require(sample->slot >= 0 && slots.insert(sample->slot).second, name + ": has no slot of its own");
    report.require(!sample->in_forward, name + ": is in a forward between iterations");
    report.require(arrivals.insert(sample->standing.arrival).second, name + ": is twice among the running samples");
  }
  std::int64_t rows = 0;
  for (const auto& [order, sample] : loop.waiting()) {
    const std::string name = name_of(*sample);
    report.require(sample->state != SampleState::Running && sample->step == 0 && sample->slot < 0,
                   name + ": is in the queue, but has begun");
    report.require(arrivals.insert(sample->standing.arrival).second, name + ": is both waiting and running");
    rows += rows_of(sample->passes());
  }
  report.require(rows == loop.waiting_rows(), "the rows of waiting samples are miscounted");
  report.require(ungated <= loop.options().max_running, "more samples run than max_running");
}

void check_rows(const Sample& sample, const PlanEntry& entry, const StepPlan& plan, Report& report,
                std::vector<int>& used) {
  const std::string name = name_of(sample);
  const Passes passes = sample.passes();
  report.require((entry.row_cond >= 0) == (passes != Passes::Unconditional),
                 name + ": conditional row does not match its guidance");
  report.require((entry.row_uncond >= 0) == (passes != Passes::Conditional),
                 name + ": unconditional row does not match its guidance");
  for (const int row : {entry.row_cond, entry.row_uncond}) {
    if (row < 0) continue;
    report.require(row < plan.rows, name + ": row " + std::to_string(row) + " lies outside the forward");
    if (row < plan.rows) ++used[static_cast<std::size_t>(row)];
  }
}

void check_iteration(const Loop& loop, Report& report) {
  const Iteration& iteration = loop.iteration();
  const StepPlan& plan = iteration.plan;
  report.require(plan.rows <= loop.spec().max_rows, "the plan has more rows than a forward may have");
  report.require(plan.entries.size() == iteration.samples.size(), "the plan's entries and samples differ in number");
  std::set<const Sample*> known_samples, planned;
  for (const auto& sample : loop.running()) known_samples.insert(sample.get());
  for (const auto& [order, sample] : loop.waiting()) known_samples.insert(sample.get());  // may begin in it
  std::vector<int> used(static_cast<std::size_t>(plan.rows > 0 ? plan.rows : 0));
  for (std::size_t i = 0; i < iteration.samples.size(); ++i) {
    const Sample* sample = iteration.samples[i];
    const bool known = known_samples.count(sample) > 0 && planned.insert(sample).second;
    report.require(known, "the plan has a sample that is neither running nor waiting, or has one twice");
    if (!known) continue;
    report.require(sample->live(), name_of(*sample) + ": is planned, but has ended");
    report.require(!sample->request.gate || sample->request.gate->open,
                   name_of(*sample) + ": is planned behind a closed gate");
    report.require(sample->request.adapters == loop.forward_adapters(),
                   name_of(*sample) + ": shares a forward with another set of adapters");
    check_rows(*sample, plan.entries[i], plan, report, used);
  }
  for (std::size_t row = 0; row < used.size(); ++row)
    report.require(used[row] == 1,
                   "row " + std::to_string(row) + " has " + std::to_string(used[row]) + " samples instead of one");
}

}  // namespace

std::vector<std::string> violations(const Loop& loop) {
  Report report;
  check_life_cycles(loop, report);
  if (loop.planned()) check_iteration(loop, report);
  return report.found;
}

}  // namespace stepfuse
