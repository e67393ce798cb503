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
  const auto backlog = static_cast<double>(std::max<std::int64_t>(rows_wanted, 1));
  const double best = 1.5 * std::sqrt(cost.fixed / cost.row) * std::pow(backlog, 0.75);
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
  using Candidate = StepPlan::Candidate;
  plan.clear();
  auto& line = plan.line;
  line.clear();
  int wanted = 0;
  const auto offer = [&](const SampleView& view) {
    line.push_back({view.order, static_cast<int>(line.size()), view.passes});
    wanted += rows_of(view.passes);
  };
  for (const SampleView& view : running) offer(view);
  const auto joins = std::min(waiting.size(), static_cast<std::size_t>(std::max(limits.max_joins, 0)));
  for (std::size_t i = 0; i < joins; ++i) offer(waiting[i]);

  const int worthwhile = rows_worthwhile(limits.cost, rows_wanted, limits.max_rows);
  auto taken = line.end();
  if (wanted > worthwhile) {
    // Every candidate takes a row at least, so only the first `worthwhile` need be in order.
    const auto earlier = [](const Candidate& a, const Candidate& b) { return a.order < b.order; };
    const auto front =
        line.begin() + static_cast<std::ptrdiff_t>(std::min(line.size(), static_cast<std::size_t>(worthwhile)));
    if (front != line.end()) std::nth_element(line.begin(), front, line.end(), earlier);
    std::sort(line.begin(), front, earlier);
    int rows = 0;
    taken = line.begin();
    const auto take = [&](std::vector<Candidate>::iterator at) {
      rows += rows_of(at->passes);
      std::swap(*taken++, *at);
    };
    for (auto at = line.begin(); at != front; ++at) {
      const int limit = rows == 0 ? limits.max_rows : worthwhile;  // the first in line steps in any case
      if (rows + rows_of(at->passes) <= limit) take(at);
    }
    if (rows + 1 == worthwhile) {  // one was let pass: who behind the front could use the row that is left?
      const auto better = [&](const Candidate& a, const Candidate& b) {
        const bool fits_a = rows_of(a.passes) == 1, fits_b = rows_of(b.passes) == 1;
        return fits_a != fits_b ? fits_a : a.order < b.order;
      };
      const auto best = std::min_element(front, line.end(), better);
      if (best != line.end() && rows_of(best->passes) == 1) take(best);
    }
    const auto by_place = [](const Candidate& a, const Candidate& b) { return a.sample < b.sample; };
    std::sort(line.begin(), taken, by_place);  // rows change hands least if samples keep their order
  }
  for (auto at = line.begin(); at != taken; ++at) plan.place(at->sample, at->passes);
}

}  // namespace stepfuse
