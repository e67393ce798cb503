// Which samples step in the next forward, and in which of its rows. A pure function: no clock, no memory, no model.
#pragma once

#include <cstdint>
#include <vector>

#include "step_row.h"

namespace stepfuse {

enum class Passes : std::uint8_t {
  Conditional,    // g == 1: one row
  Unconditional,  // g == 0, or a sample that is told nothing: one row
  Both,           // guided: two rows of the same forward
};

constexpr int rows_of(Passes passes) { return passes == Passes::Both ? 2 : 1; }

Passes passes_of(const StepRow& row, bool conditioned);

// What the planner knows of a running or waiting sample.
struct SampleView {
  Passes passes;  // what its next step computes
  int peak_rows;  // the most rows that any of its remaining steps takes: reserved as long as it runs
};

struct PlanLimits {
  int max_rows;  // rows of one forward
};

struct PlanEntry {
  int sample;      // index into the running samples, those admitted by this plan counted in behind the others
  int row_cond;    // row of the conditional pass, -1 if this step has none
  int row_uncond;  // row of the unconditional pass, -1 if this step has none
};

struct StepPlan {
  std::vector<PlanEntry> entries;  // one a sample that steps
  int rows = 0;                    // rows of the forward, densely used from 0
  int admitted = 0;                // samples to take from the head of the queue

  bool empty() const { return entries.empty(); }
};

// First come, first served: all running samples step; waiting ones are admitted in order as long as their peak rows
// fit. `plan` is an output that keeps its memory from turn to turn.
void make_plan(const std::vector<SampleView>& running, const std::vector<SampleView>& waiting, const PlanLimits& limits,
               StepPlan& plan);

}  // namespace stepfuse
