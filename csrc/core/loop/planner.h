// Which samples step in the next forward, and in which of its rows. Pure functions: no clock, no state, no model.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

#include "../step/row.h"

namespace stepfuse {

// What a step computes.
enum class Passes : std::uint8_t {
  Conditional,    // g == 1: one row
  Unconditional,  // g == 0, or a sample without conditioning: one row
  Both,           // guided: two rows of the same forward
};

constexpr int rows_of(Passes passes) { return passes == Passes::Both ? 2 : 1; }

Passes passes_of(const StepRow& row, bool conditioned);

// How many of these rows, from the first on, compute the same passes: so many steps in a row a sample keeps the rows
// that it has of a forward, if no other sample joins or leaves.
int steps_alike(const StepRow* rows, int count, bool conditioned);

// Which sample steps first among those of the same priority.
enum class Policy : std::uint8_t {
  FirstCome,         // in the order of arrival
  ShortestFirst,     // fewest passes left, aged so that no sample starves
  EarliestDeadline,  // samples without a deadline last
};

// What a policy orders samples by.
struct Standing {
  int priority = 0;                                           // the higher steps first, whatever the policy
  std::uint64_t arrival = 0;                                  // the sample's number in the order of submission; unique
  double arrival_passes = 0;                                  // network passes the loop had computed by then
  double passes_left = 0;                                     // of this sample
  double deadline = std::numeric_limits<double>::infinity();  // seconds on the loop's clock
};

// A sample's position in line: the smaller steps first.
struct Order {
  int priority;           // compared first: the higher priority is the smaller order
  double urgency;         // by the policy; the smaller is the more urgent
  std::uint64_t arrival;  // decides between equals

  bool operator<(const Order& other) const {
    if (priority != other.priority) return priority > other.priority;
    if (urgency != other.urgency) return urgency < other.urgency;
    return arrival < other.arrival;
  }
};

// The shortest-first urgency is passes_left + ageing * arrival_passes. All samples age alike, so the clock cancels out
// and the order of two samples changes only when one of them steps. It bounds starvation: a sample that arrives after
// the loop has computed passes_left / ageing more passes stays behind this one in line, and gets no row before it
// except one that this sample cannot use.
Order order_of(Policy policy, double ageing, const Standing& standing);

// A sample that may step, as the planner knows it.
struct Candidate {
  Order order;
  Passes passes;   // what its next step computes
  int index = -1;  // among the candidates, running ones first; set by make_plan

  std::uint64_t adapters = 0;  // its set of adapters (LoRAs): samples of one set alone share a forward; 0: none
  std::uint64_t served = 0;    // forwards that the loop had computed when that set last had one
};

// Seconds that a forward takes: fixed + row * rows. Unknown until measured.
struct CostCurve {
  double fixed = 0;  // seconds, whatever the number of rows
  double row = 0;    // seconds a row; 0: the curve is unknown

  bool known() const { return row > 0 && fixed >= 0; }
  double seconds(int rows) const { return fixed + row * rows; }
};

struct PlanLimits {
  int max_rows;    // rows of one forward
  int max_joins;   // waiting samples that may begin: one that has begun holds its state and history to its end
  CostCurve cost;  // of a forward
};

// How many rows the next forward should have at most, if all running and waiting samples together want `rows_wanted`.
// More rows spread the fixed cost, but every sample among them waits for all: n equal samples of b rows, run k at a
// time, take (fixed / (b k) + row) (n + k) / 2 on average, which is least at b k = sqrt(fixed / row * b n). Time saved
// also helps later arrivals, more so under higher load, which the backlog measures: hence a power above a
// half. The factor and the power are the best of those that benchmarks/simulate.py compares.
int rows_worthwhile(const CostCurve& cost, std::int64_t rows_wanted, int max_rows);

struct PlanEntry {
  int sample;      // index of its candidate
  int row_cond;    // row of the conditional pass, -1 if this step has none
  int row_uncond;  // row of the unconditional pass, -1 if this step has none
};

struct StepPlan {
  std::vector<PlanEntry> entries;  // one a sample that steps, in the order of the candidates
  int rows = 0;                    // rows of the forward, densely used from 0

  std::vector<std::optional<Passes>> chosen;  // scratch of make_plan, one a candidate: empty if it does not step

  bool empty() const { return entries.empty(); }
  void clear();
  void add(int sample, Passes passes);  // at the rows behind those in use
};

// Takes candidates in order as far as the rows go; one that needs two rows where one is left lets the next one pass.
// All are of one set of adapters: of those with candidates of the highest priority, the one that was served longest
// ago. Sets so take turns, and between two forwards of a set that has candidates each other set has at most one.
// `candidates` are the `running` ones, then the waiting ones, sorted within each set; later waiting ones may be left
// out, but `rows_wanted` counts them. They are reordered, and those of other sets and beyond max_joins are dropped.
// `plan` is an output that keeps its memory.
void make_plan(std::vector<Candidate>& candidates, std::size_t running, std::int64_t rows_wanted,
               const PlanLimits& limits, StepPlan& plan);

}  // namespace stepfuse
