#include "planner.h"

#include <algorithm>
#include <cmath>

namespace stepfuse {

Passes passes_of(const StepRow& row, bool conditioned) {
  if (!conditioned || row.g == 0.0f) return Passes::Unconditional;
  return row.g == 1.0f ? Passes::Conditional : Passes::Both;
}

int steps_alike(const StepRow* rows, int count, bool conditioned) {
  const auto differs = [&](const StepRow& row) {
    return passes_of(row, conditioned) != passes_of(rows[0], conditioned);
  };
  return static_cast<int>(std::find_if(rows, rows + count, differs) - rows);
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

void StepPlan::add(int sample, Passes passes) {
  PlanEntry entry{sample, -1, -1};
  if (passes != Passes::Unconditional) entry.row_cond = rows++;
  if (passes != Passes::Conditional) entry.row_uncond = rows++;
  entries.push_back(entry);
}

namespace {

// Leaves the candidates of one set of adapters.
void keep_one_set(std::vector<Candidate>& candidates) {
  const auto served_earlier = [](const Candidate& a, const Candidate& b) {
    if (a.order.priority != b.order.priority) return a.order.priority > b.order.priority;
    return a.served != b.served ? a.served < b.served : a.order.arrival < b.order.arrival;
  };
  const auto first = std::min_element(candidates.begin(), candidates.end(), served_earlier);
  if (first == candidates.end()) return;
  const auto other = [adapters = first->adapters](const Candidate& one) { return one.adapters != adapters; };
  candidates.erase(std::remove_if(candidates.begin(), candidates.end(), other), candidates.end());
}

// Which of the candidates step where not all of them can. Reorders them.
void choose(std::vector<Candidate>& candidates, int worthwhile, int max_rows,
            std::vector<std::optional<Passes>>& chosen) {
  int rows = worthwhile;
  const auto take = [&](const Candidate& one) {
    rows -= rows_of(one.passes);
    chosen[static_cast<std::size_t>(one.index)] = one.passes;
  };
  const auto earlier = [](const Candidate& a, const Candidate& b) { return a.order < b.order; };
  auto at = candidates.begin();
  const auto end = candidates.end();
  // The first rows / 2 in line fit whatever each of them takes, so their order among themselves does not matter.
  while (rows >= 2 && at != end) {
    const auto fit = at + std::min<std::ptrdiff_t>(rows / 2, end - at);
    if (fit != end) std::nth_element(at, fit, end, earlier);
    std::for_each(at, fit, take);
    at = fit;
  }
  if (at == candidates.begin()) {
    const auto first = std::min_element(at, end, earlier);  // steps in any case
    if (rows_of(first->passes) <= max_rows) take(*first);
  } else if (rows == 1 && at != end) {
    const auto smaller = [](const Candidate& a, const Candidate& b) {
      const int rows_a = rows_of(a.passes), rows_b = rows_of(b.passes);
      return rows_a != rows_b ? rows_a < rows_b : a.order < b.order;
    };
    const auto last = std::min_element(at, end, smaller);
    if (rows_of(last->passes) == 1) take(*last);
  }
}

}  // namespace

void make_plan(std::vector<Candidate>& candidates, std::size_t running, std::int64_t rows_wanted,
               const PlanLimits& limits, StepPlan& plan) {
  plan.clear();
  const std::ptrdiff_t joins = std::max(limits.max_joins, 0);
  if (joins == 0) candidates.resize(running);  // a set of waiting ones alone could not step
  for (std::size_t i = 0; i < candidates.size(); ++i) candidates[i].index = static_cast<int>(i);
  plan.chosen.assign(candidates.size(), std::nullopt);
  keep_one_set(candidates);
  const auto waiting = std::find_if(candidates.begin(), candidates.end(),
                                    [running](const Candidate& one) { return one.index >= static_cast<int>(running); });
  if (candidates.end() - waiting > joins) candidates.erase(waiting + joins, candidates.end());
  int wanted = 0;
  for (const Candidate& one : candidates) wanted += rows_of(one.passes);
  const int worthwhile = rows_worthwhile(limits.cost, rows_wanted, limits.max_rows);
  if (wanted <= worthwhile) {
    for (const Candidate& one : candidates) plan.add(one.index, one.passes);
    return;
  }
  choose(candidates, worthwhile, limits.max_rows, plan.chosen);
  // In the order of the candidates, whatever their order in line: so the fewest rows change their sample.
  for (std::size_t i = 0; i < plan.chosen.size(); ++i)
    if (plan.chosen[i]) plan.add(static_cast<int>(i), *plan.chosen[i]);
}

}  // namespace stepfuse
