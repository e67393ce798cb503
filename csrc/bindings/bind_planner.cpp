#include "../core/planner.h"
#include "bindings.h"

namespace stepfuse {

void bind_planner(py::module_& m) {
  py::enum_<Passes>(m, "Passes")
      .value("Conditional", Passes::Conditional)
      .value("Unconditional", Passes::Unconditional)
      .value("Both", Passes::Both);
  py::class_<SampleView>(m, "SampleView")
      .def(py::init([](Passes passes, int peak_rows) { return SampleView{passes, peak_rows}; }), py::arg("passes"),
           py::arg("peak_rows"));
  py::class_<PlanEntry>(m, "PlanEntry")
      .def_readonly("sample", &PlanEntry::sample)
      .def_readonly("row_cond", &PlanEntry::row_cond)
      .def_readonly("row_uncond", &PlanEntry::row_uncond);
  py::class_<StepPlan>(m, "StepPlan")
      .def_readonly("entries", &StepPlan::entries)
      .def_readonly("rows", &StepPlan::rows)
      .def_readonly("admitted", &StepPlan::admitted);
  m.def(
      "make_plan",
      [](const std::vector<SampleView>& running, const std::vector<SampleView>& waiting, int max_rows) {
        StepPlan plan;
        make_plan(running, waiting, PlanLimits{max_rows}, plan);
        return plan;
      },
      py::arg("running"), py::arg("waiting"), py::arg("max_rows"),
      "The planner's policy, for tests to drive without a model.");
}

}  // namespace stepfuse
