#include "planner.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace stepfuse {

Passes passes_of(const StepRow& row, bool conditioned) {
  if (!conditioned || row.g == 0.0f) return Passes::Unconditional;
  return row.g == 1.0f ? Passes::Conditional : Passes::Both;
}

Order order_of(Policy policy, double ageing, const Standing& standing) {
  double urgency = 0;
  if (policy == Policy::ShortestFirst) urgency = standing.passes_left + ageing * standing.arrival_passes;
  if (policy == Policy::EarliestDeadline) urgency = standing.deadline;
  return {standing.priority, urgency, standing.arrival};
}

int rows_worthwhile(const CostCurve& cost, std::int64_t rows_wanted, int max_rows) {
  if (!cost.known()) return max_rows;
  const double best = 1.5 * std::sqrt(cost.fixed / cost.row) * std::pow(static_cast<double>(rows_wanted), 0.75);
  return static_cast<int>(std::ceil(std::clamp(best, 1.0, static_cast<double>(max_rows))));
}

void StepPlan::clear() {
  entries.clear();
  rows = 0;
}

void StepPlan::place(int sample, Passes passes) {
  PlanEntry entry{sample, -1, -1};
  if (passes != Passes::Unconditional) entry.row_cond = rows++;
  if (passes != Passes::Conditional) entry.row_uncond = rows++;
  entries.push_back(entry);
}

void make_plan(const std::vector<SampleView>& running, const std::vector<SampleView>& waiting, std::int64_t rows_wanted,
               const PlanLimits& limits, StepPlan& plan) {
  plan.clear();
  const auto joins = static_cast<std::size_t>(std::max(limits.max_joins, 0));
  const std::size_t candidates = running.size() + std::min(waiting.size(), joins);
  const auto view = [&](int i) -> const SampleView& {
    const auto index = static_cast<std::size_t>(i);
    return index < running.size() ? running[index] : waiting[index - running.size()];
  };

  auto& line = plan.line;
  line.resize(candidates);
  std::iota(line.begin(), line.end(), 0);
  const int worthwhile = rows_worthwhile(limits.cost, rows_wanted, limits.max_rows);
  // Every candidate takes a row at least: who stands behind the first `worthwhile` cannot step.
  const auto front = std::min(candidates, static_cast<std::size_t>(std::max(worthwhile, 2)));
  const auto sorted = line.begin() + static_cast<std::ptrdiff_t>(front);
  std::partial_sort(line.begin(), sorted, line.end(), [&](int a, int b) { return view(a).order < view(b).order; });

  int rows = 0;
  auto taken = line.begin();
  for (auto at = line.begin(); at != sorted; ++at) {
    const int needed = rows_of(view(*at).passes);
    const int limit = rows == 0 ? limits.max_rows : worthwhile;  // the first in line steps in any case
    if (rows + needed > limit) continue;
    rows += needed;
    *taken++ = *at;
  }
  std::sort(line.begin(), taken);  // rows change hands least if samples keep their order
  for (auto at = line.begin(); at != taken; ++at) plan.place(*at, view(*at).passes);
}

}  // namespace stepfuse
