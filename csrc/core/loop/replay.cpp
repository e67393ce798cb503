#include "replay.h"

#include <cmath>
#include <stdexcept>

#include "host_stepper.h"

namespace stepfuse {

namespace {

void record(const Loop& loop, double began, double ended, Replay& found) {
  const Iteration& iteration = loop.iteration();
  const auto number = static_cast<std::int64_t>(loop.counters().forwards);
  for (std::size_t i = 0; i < iteration.samples.size(); ++i) {
    const Sample& sample = *iteration.samples[i];
    const PlanEntry& entry = iteration.plan.entries[i];
    for (const int row : {entry.row_cond, entry.row_uncond})
      if (row >= 0)
        found.trace.push_back({number, began, ended, static_cast<std::int64_t>(sample.request.id), sample.step, row});
  }
}

}  // namespace

Replay replay(const std::vector<Arrival>& arrivals, int max_rows, const LoopOptions& options, const CostCurve& cost,
              bool trace) {
  Loop loop(std::make_unique<HostStepper>(ModelSpec{1, TimestepType::Float32, {1}, max_rows}), options);
  const std::uint8_t label = 0;
  std::vector<float> states(arrivals.size());
  Replay found;
  found.began.resize(arrivals.size());
  found.finished.resize(arrivals.size());
  double now = 0;
  std::size_t next = 0;
  const auto submit_until = [&](double time) {
    for (; next < arrivals.size() && arrivals[next].at <= time; ++next) {
      const Arrival& arrival = arrivals[next];
      Request request{next, arrival.table, next, false, &states[next], nullptr, {}, {&label}};
      if (arrival.conditioned) request.cond = {&label};
      request.priority = arrival.priority;
      request.adapters = arrival.adapters;
      loop.submit(std::move(request), arrival.at);
    }
  };
  for (std::size_t i = 0; i < arrivals.size(); ++i)
    if (!(arrivals[i].at >= (i > 0 ? arrivals[i - 1].at : 0) && std::isfinite(arrivals[i].at)))
      throw std::invalid_argument("arrivals must be finite, from 0 on and in order");
  while (true) {
    submit_until(now);
    if (!loop.prepare(now)) {
      if (next == arrivals.size()) break;
      now = arrivals[next].at;
      continue;
    }
    const double ended = now + cost.seconds(loop.forward_rows());
    if (trace) record(loop, now, ended, found);
    now = ended;
    submit_until(now);  // those submitted during the forward are in the next plan
    loop.step(now);
    loop.commit(nullptr, now);
    for (const Event& event : loop.events()) {
      found.began[event.id] = arrivals[event.id].at + event.wait_seconds;
      found.finished[event.id] = now;
    }
    loop.events().clear();
  }
  found.counters = loop.counters();
  return found;
}

}  // namespace stepfuse
