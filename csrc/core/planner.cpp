#include "planner.h"

namespace stepfuse {

Passes passes_of(const StepRow& row, bool conditioned) {
  if (!conditioned || row.g == 0.0f) return Passes::Unconditional;
  return row.g == 1.0f ? Passes::Conditional : Passes::Both;
}

namespace {

void place(int sample, Passes passes, StepPlan& plan) {
  PlanEntry entry{sample, -1, -1};
  if (passes != Passes::Unconditional) entry.row_cond = plan.rows++;
  if (passes != Passes::Conditional) entry.row_uncond = plan.rows++;
  plan.entries.push_back(entry);
}

}  // namespace

void make_plan(const std::vector<SampleView>& running, const std::vector<SampleView>& waiting, const PlanLimits& limits,
               StepPlan& plan) {
  plan.entries.clear();
  plan.rows = plan.admitted = 0;
  int reserved = 0;
  int sample = 0;
  for (const SampleView& view : running) {
    reserved += view.peak_rows;
    place(sample++, view.passes, plan);
  }
  for (const SampleView& view : waiting) {
    reserved += view.peak_rows;
    if (reserved > limits.max_rows) break;
    place(sample++, view.passes, plan);
    ++plan.admitted;
  }
}

}  // namespace stepfuse
