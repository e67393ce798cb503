#include <cmath>
#include <string>

#include "../core/loop/loop.h"
#include "bindings.h"

namespace stepfuse {

namespace {

CostCurve cost_curve(double fixed, double row) {
  if (!(std::isfinite(fixed) && std::isfinite(row)))
    throw py::value_error("a cost curve must be finite, got " + std::to_string(fixed) + " and " + std::to_string(row));
  return {fixed, row};
}

// An order that is not a number has no place in line, and a sort of such reads beyond its ends.
Order order(Policy policy, double ageing, int priority, std::uint64_t arrival, double arrival_passes,
            double passes_left, double deadline) {
  const Order found = order_of(policy, ageing, Standing{priority, arrival, arrival_passes, passes_left, deadline});
  if (std::isnan(found.urgency)) throw py::value_error("ageing, passes and deadline must be numbers");
  return found;
}

void require_row(int max_rows) {
  if (max_rows < 1) throw py::value_error("max_rows must be at least 1, got " + std::to_string(max_rows));
}

}  // namespace

void bind_planner(py::module_& m) {
  py::enum_<Passes>(m, "Passes")
      .value("Conditional", Passes::Conditional)
      .value("Unconditional", Passes::Unconditional)
      .value("Both", Passes::Both);
  py::enum_<Policy>(m, "Policy")
      .value("FirstCome", Policy::FirstCome)
      .value("ShortestFirst", Policy::ShortestFirst)
      .value("EarliestDeadline", Policy::EarliestDeadline);
  py::class_<CostCurve>(m, "CostCurve").def(py::init(&cost_curve), py::arg("fixed") = 0.0, py::arg("row") = 0.0);
  py::class_<Order>(m, "Order")
      .def_readonly("priority", &Order::priority)
      .def_readonly("urgency", &Order::urgency)
      .def_readonly("arrival", &Order::arrival)
      .def("__lt__", &Order::operator<);
  m.def("order_of", &order, py::arg("policy"), py::arg("ageing") = 0.0, py::arg("priority") = 0, py::arg("arrival") = 0,
        py::arg("arrival_passes") = 0.0, py::arg("passes_left") = 0.0, py::arg("deadline") = kNever);
  py::class_<Candidate>(m, "Candidate")
      .def(py::init([](const Order& order, Passes passes, std::uint64_t adapters, std::uint64_t served) {
             return Candidate{order, passes, -1, adapters, served};
           }),
           py::arg("order"), py::arg("passes"), py::arg("adapters") = 0, py::arg("served") = 0);
  py::class_<PlanEntry>(m, "PlanEntry")
      .def_readonly("sample", &PlanEntry::sample)
      .def_readonly("row_cond", &PlanEntry::row_cond)
      .def_readonly("row_uncond", &PlanEntry::row_uncond);
  py::class_<StepPlan>(m, "StepPlan").def_readonly("entries", &StepPlan::entries).def_readonly("rows", &StepPlan::rows);
  m.def(
      "steps_alike",
      [](const FloatArray& rows, bool conditioned) {
        const std::vector<StepRow> read = lines_from(rows).rows;
        if (read.empty()) throw py::value_error("rows must be at least one");
        return steps_alike(read.data(), static_cast<int>(read.size()), conditioned);
      },
      py::arg("rows"), py::arg("conditioned"));
  m.def(
      "rows_worthwhile",
      [](const CostCurve& cost, std::int64_t rows_wanted, int max_rows) {
        require_row(max_rows);
        return rows_worthwhile(cost, rows_wanted, max_rows);
      },
      py::arg("cost"), py::arg("rows_wanted"), py::arg("max_rows"));
  m.def(
      "make_plan",
      [](const std::vector<Candidate>& running, const std::vector<Candidate>& waiting, int max_rows, int max_joins,
         std::int64_t rows_wanted, const CostCurve& cost) {
        require_row(max_rows);
        std::vector<Candidate> candidates = running;
        candidates.insert(candidates.end(), waiting.begin(), waiting.end());
        StepPlan plan;
        make_plan(candidates, running.size(), rows_wanted, PlanLimits{max_rows, max_joins, cost}, plan);
        return plan;
      },
      py::arg("running"), py::arg("waiting"), py::arg("max_rows"), py::arg("max_joins"), py::arg("rows_wanted") = 0,
      py::arg("cost") = CostCurve{}, "The planner's policy, for tests to drive without a model.");
  py::class_<LoopOptions>(m, "LoopOptions")
      .def(py::init([](int max_running, Policy policy, double ageing, bool pad, const CostCurve& cost) {
             return LoopOptions{max_running, cost, policy, ageing, pad};
           }),
           py::kw_only(), py::arg("max_running"), py::arg("policy") = Policy::FirstCome, py::arg("ageing") = 0.0,
           py::arg("pad") = false, py::arg("cost") = CostCurve{});
}

}  // namespace stepfuse
