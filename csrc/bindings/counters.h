// The loop's counters as plain Python numbers.
#pragma once

#include "../core/loop/metrics.h"
#include "bindings.h"

namespace stepfuse {

inline py::dict histogram_dict(const Histogram& histogram) {
  py::list bounds, counts;
  double bound = histogram.first_bound;
  for (int i = 0; i < Histogram::kBuckets; ++i, bound *= 2) {
    if (i + 1 < Histogram::kBuckets) bounds.append(bound);
    counts.append(histogram.counts[static_cast<std::size_t>(i)]);
  }
  py::dict found;
  found["bounds"] = bounds;
  found["counts"] = counts;
  found["sum"] = histogram.sum;
  return found;
}

inline py::dict counters_dict(const Counters& c) {
  py::dict found;
  found["submitted"] = c.submitted;
  found["samples"] = c.samples;
  found["failures"] = c.failures;
  found["cancelled"] = c.cancelled;
  found["expired"] = c.expired;
  found["deadline_misses"] = c.deadline_misses;
  found["steps"] = c.steps;
  found["forwards"] = c.forwards;
  found["failed_forwards"] = c.failed_forwards;
  found["network_passes"] = c.network_passes;
  found["padded_rows"] = c.padded_rows;
  found["network_seconds"] = c.network_seconds;
  found["step_seconds"] = c.step_seconds;
  found["loop_seconds"] = c.loop_seconds;
  found["callback_seconds"] = c.callback_seconds;
  found["wait_seconds"] = histogram_dict(c.wait_seconds);
  found["latency_seconds"] = histogram_dict(c.latency_seconds);
  found["forward_seconds"] = histogram_dict(c.forward_seconds);
  found["forward_rows"] = histogram_dict(c.forward_rows);
  return found;
}

}  // namespace stepfuse
