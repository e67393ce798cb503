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

void check_rows(const Loop& loop, const PlanEntry& entry, Report& report, std::vector<int>& used) {
  const Sample& sample = loop.running()[static_cast<std::size_t>(entry.sample)];
  const std::string name = "sample " + std::to_string(sample.request.id);
  const Passes passes = passes_of(sample.row(), sample.request.conditioned());
  report.require((entry.row_cond >= 0) == (passes != Passes::Unconditional),
                 name + ": conditional row does not match its guidance");
  report.require((entry.row_uncond >= 0) == (passes != Passes::Conditional),
                 name + ": unconditional row does not match its guidance");
  for (const int row : {entry.row_cond, entry.row_uncond}) {
    if (row < 0) continue;
    report.require(row < loop.plan().rows, name + ": row " + std::to_string(row) + " lies outside the forward");
    if (row < loop.plan().rows) ++used[static_cast<std::size_t>(row)];
  }
}

}  // namespace

std::vector<std::string> violations(const Loop& loop) {
  Report report;
  const StepPlan& plan = loop.plan();
  report.require(plan.rows <= loop.limits().max_rows, "the plan has more rows than a forward may have");
  report.require(plan.entries.size() == loop.running().size(), "not every running sample has a place in the plan");

  std::set<std::uint64_t> serials;
  for (const Sample& sample : loop.running()) {
    const std::string name = "sample " + std::to_string(sample.request.id);
    report.require(sample.state == SampleState::Running, name + ": runs, but its state says otherwise");
    report.require(sample.steps_left() > 0, name + ": has no step left");
    report.require(sample.history.empty() != sample.request.table->uses_history,
                   name + ": history does not match its table");
    report.require(serials.insert(sample.serial).second, name + ": stands twice among the running");
  }
  for (const Sample& sample : loop.waiting()) {
    const std::string name = "sample " + std::to_string(sample.request.id);
    report.require(sample.state == SampleState::Waiting && sample.step == 0, name + ": waits, but has begun");
    report.require(serials.insert(sample.serial).second, name + ": both waits and runs");
  }

  std::vector<int> used(static_cast<std::size_t>(plan.rows > 0 ? plan.rows : 0));
  std::set<int> planned;
  for (const PlanEntry& entry : plan.entries) {
    const bool known = entry.sample >= 0 && entry.sample < static_cast<int>(loop.running().size());
    report.require(known && planned.insert(entry.sample).second,
                   "the plan names a sample that does not run, or one twice");
    if (known) check_rows(loop, entry, report, used);
  }
  for (std::size_t row = 0; row < used.size(); ++row)
    report.require(used[row] == 1,
                   "row " + std::to_string(row) + " has " + std::to_string(used[row]) + " owners instead of one");
  return report.found;
}

}  // namespace stepfuse
