// Which samples step in the next forward, and in which of its rows. Pure functions: no clock, no memory, no model.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "../step/row.h"

namespace stepfuse {

enum class Passes : std::uint8_t {
  Conditional,    // g == 1: one row
  Unconditional,  // g == 0, or a sample that is told nothing: one row
  Both,           // guided: two rows of the same forward
};

constexpr int rows_of(Passes passes) { return passes == Passes::Both ? 2 : 1; }

Passes passes_of(const StepRow& row, bool conditioned);

enum class Policy : std::uint8_t {
  FirstCome,         // in the order of arrival
  ShortestFirst,     // fewest passes left, aged so that nobody starves
  EarliestDeadline,  // those without a deadline last
};

// What a policy may look at.
struct Standing {
  int priority = 0;                                           // the higher steps first, whatever the policy
  std::uint64_t arrival = 0;                                  // counts samples; unique
  double arrival_passes = 0;                                  // network passes the loop had computed by then
  double passes_left = 0;                                     // of this sample
  double deadline = std::numeric_limits<double>::infinity();  // seconds on the loop's clock
};

// Where a sample stands in line: the smaller steps first.
struct Order {
  int priority;
  double urgency;
  std::uint64_t arrival;

  bool operator<(const Order& other) const {
    if (priority != other.priority) return priority > other.priority;
    if (urgency != other.urgency) return urgency < other.urgency;
    return arrival < other.arrival;
  }
};

// The shortest-first urgency is passes_left + ageing * arrival_passes. All samples age alike, so the clock cancels out
// and the order of two samples changes only when one of them steps. It bounds starvation: whoever arrives after the
// loop has computed passes_left / ageing passes more stands behind this sample for good, and gets no row before it but
// one that it cannot use.
Order order_of(Policy policy, double ageing, const Standing& standing);

// What the planner knows of a sample.
struct SampleView {
  Order order;
  Passes passes;  // what its next step computes
};

// Seconds of a forward of so many rows: fixed + row * rows. Unknown until measured.
struct CostCurve {
  double fixed = 0;
  double row = 0;

  bool known() const { return row > 0 && fixed >= 0; }
  double seconds(int rows) const { return fixed + row * rows; }
};

struct PlanLimits {
  int max_rows;   // rows of one forward
  int max_joins;  // waiting samples that may begin: one that has begun holds its state and history to its end
  CostCurve cost;
};

// How many rows the next forward is worth, if `rows_wanted` rows are asked for by all who run or wait. More rows spread
// the fixed cost, but every sample among them waits for all: n equal samples of b rows, run k at a time, take
// (fixed / (b k) + row) (n + k) / 2 on average, which is least at b k = sqrt(fixed / row * b n). What is saved also
// helps those who come later, the more the higher the load, of which the backlog tells: hence a power above a half. The
// factor and the power are the best of those that benchmarks/simulate.py compares.
int rows_worthwhile(const CostCurve& cost, std::int64_t rows_wanted, int max_rows);

struct PlanEntry {
  int sample;      // index into the candidates: the running ones, then the waiting ones
  int row_cond;    // row of the conditional pass, -1 if this step has none
  int row_uncond;  // row of the unconditional pass, -1 if this step has none
};

struct StepPlan {
  std::vector<PlanEntry> entries;  // one a sample that steps, in the order of the candidates
  int rows = 0;                    // rows of the forward, densely used from 0

  struct Candidate {
    Order order;
    int sample;
    Passes passes;
  };
  std::vector<Candidate> line;       // scratch
  std::vector<std::uint8_t> chosen;  // scratch: one a candidate

  bool empty() const { return entries.empty(); }
  void clear();
  void place(int sample, Passes passes);
};

// Takes candidates in order as far as the rows go; one that needs two where one is left lets the next pass. `waiting`
// is sorted, its end may be left out; `rows_wanted` counts all. `plan` is an output that keeps its memory.
void make_plan(const std::vector<SampleView>& running, const std::vector<SampleView>& waiting, std::int64_t rows_wanted,
               const PlanLimits& limits, StepPlan& plan);

}  // namespace stepfuse
