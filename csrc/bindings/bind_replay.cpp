#include "../core/loop/replay.h"
#include "bindings.h"
#include "counters.h"

namespace stepfuse {

namespace {

py::dict replay_load(const std::vector<std::shared_ptr<Table>>& tables, const std::vector<double>& at,
                     const std::vector<bool>& conditioned, const std::vector<int>& priorities, int max_rows,
                     const LoopOptions& options, const CostCurve& cost, bool trace,
                     std::vector<std::uint64_t> adapters) {
  adapters.resize(adapters.empty() ? tables.size() : adapters.size());
  if (at.size() != tables.size() || conditioned.size() != tables.size() || priorities.size() != tables.size() ||
      adapters.size() != tables.size())
    throw py::value_error("each arrival needs a table, a time, whether it is conditioned, a priority and its adapters");
  for (const auto& table : tables)
    if (!table) throw py::type_error("tables must be tables, got None");
  std::vector<Arrival> arrivals;
  for (std::size_t i = 0; i < tables.size(); ++i)
    arrivals.push_back({at[i], tables[i], conditioned[i], priorities[i], adapters[i]});
  const Replay replayed = [&] {
    ReleasedGil nogil;
    return replay(arrivals, max_rows, options, cost, trace);
  }();
  py::dict found;
  found["began"] = py::array_t<double>(static_cast<py::ssize_t>(at.size()), replayed.began.data());
  found["finished"] = py::array_t<double>(static_cast<py::ssize_t>(at.size()), replayed.finished.data());
  found["counters"] = counters_dict(replayed.counters);
  py::list entries;
  for (const TraceEntry& e : replayed.trace)
    entries.append(py::make_tuple(e.iteration, e.began, e.ended, e.sample, e.step, e.row));
  found["trace"] = entries;
  return found;
}

}  // namespace

void bind_replay(py::module_& m) {
  m.def("replay", &replay_load, py::arg("tables"), py::arg("at"), py::arg("conditioned"), py::arg("priorities"),
        py::arg("max_rows"), py::arg("options"), py::arg("cost"), py::arg("trace") = false,
        py::arg("adapters") = std::vector<std::uint64_t>{},
        "The loop over these arrivals, on a clock that a forward advances by its cost.");
}

}  // namespace stepfuse
