// The loop on a simulated clock: the same planner and bookkeeping over any load and any cost of a forward, so that
// policies are compared by measurement.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "loop.h"

namespace stepfuse {

struct Arrival {
  double at;                           // seconds; at least the time of the arrival before it
  std::shared_ptr<const Table> table;  // its steps
  bool conditioned;                    // whether it has conditioning
  int priority;                        // the higher steps first
  std::uint64_t adapters = 0;          // its set of adapters
};

// One row of one forward.
struct TraceEntry {
  std::int64_t iteration;  // from 0
  double began, ended;     // seconds, of the forward
  std::int64_t sample;     // index of the arrival
  std::int64_t step;       // of the sample, from 0
  int row;                 // of the forward
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
