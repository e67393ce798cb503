// The loop on a clock that costs nothing: the same planner and bookkeeping over any load and any cost of a forward, so
// that policies are chosen on evidence.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "loop.h"

namespace stepfuse {

struct Arrival {
  double at;  // seconds; not before the one before it
  std::shared_ptr<const Table> table;
  bool conditioned;
  int priority;
};

struct TraceEntry {
  std::int64_t iteration;
  double began, ended;  // of its forward
  std::int64_t sample;  // index of the arrival
  std::int64_t step;
  int row;
};

struct Replay {
  std::vector<double> began, finished;  // seconds, one an arrival
  Counters counters;                    // loop_seconds is real: what planning and bookkeeping took
  std::vector<TraceEntry> trace;        // one a row of a forward, if asked for
};

// Throws std::invalid_argument if an arrival could never run or is out of order.
Replay replay(const std::vector<Arrival>& arrivals, int max_rows, const LoopOptions& options, const CostCurve& cost,
              bool trace);

}  // namespace stepfuse
