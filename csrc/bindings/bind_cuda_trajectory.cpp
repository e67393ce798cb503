#include <map>
#include <memory>

#include "../cuda/trajectory.h"
#include "bind_cuda.h"

namespace stepfuse {

namespace {

using namespace cuda;

// (rows, conditioned), and if there are any its Adaptive and its levels.
Course course_of(const py::tuple& given) {
  if (given.size() < 2 || given.size() > 4)
    throw py::value_error("a course is (rows, conditioned, adaptive, levels), of which the first two suffice");
  Lines lines = lines_from(given[0].cast<FloatArray>());
  Course course{std::move(lines.rows), given[1].cast<bool>()};
  course.second = std::move(lines.second);
  if (given.size() > 2) course.adaptive = given[2].cast<Adaptive>();
  if (given.size() < 4 || given[3].is_none()) return course;
  const auto levels = given[3].cast<FloatArray>();
  if (levels.ndim() != 2 || levels.shape(1) != 2) throw py::value_error("levels must have shape (steps + 1, 2)");
  for (py::ssize_t i = 0; i < levels.shape(0); ++i) course.levels.push_back({levels.at(i, 0), levels.at(i, 1)});
  return course;
}

Frames frames_of(const std::vector<py::tuple>& courses) {
  std::vector<Course> read;
  for (const py::tuple& given : courses) read.push_back(course_of(given));
  return make_frames(read);
}

}  // namespace

void bind_cuda_trajectory(py::module_& m) {
  py::enum_<Form>(m, "Form").value("Unrolled", Form::Unrolled).value("While", Form::While);
  py::enum_<NodeKind>(m, "NodeKind")
      .value("Begin", NodeKind::Begin)
      .value("Loop", NodeKind::Loop)
      .value("Forward", NodeKind::Forward)
      .value("Step", NodeKind::Step)
      .value("Advance", NodeKind::Advance);
  py::class_<PlannedNode>(m, "PlannedNode")
      .def_readonly("kind", &PlannedNode::kind)
      .def_readonly("in_body", &PlannedNode::in_body)
      .def_readonly("after", &PlannedNode::after)
      .def_readonly("rows", &PlannedNode::rows)
      .def_readonly("frame", &PlannedNode::frame);
  py::class_<TrajectoryPlan>(m, "TrajectoryPlan")
      .def_readonly("form", &TrajectoryPlan::form)
      .def_readonly("slots", &TrajectoryPlan::slots)
      .def_readonly("steps", &TrajectoryPlan::steps)
      .def_readonly("forward_rows", &TrajectoryPlan::forward_rows)
      .def_readonly("nodes", &TrajectoryPlan::nodes)
      .def_readonly("device_bytes", &TrajectoryPlan::device_bytes)
      .def_readonly("host_bytes", &TrajectoryPlan::host_bytes);
  m.def("plan_trajectory", &plan_trajectory, py::arg("form"), py::arg("slots"), py::arg("forward_rows"),
        py::arg("buckets"), py::arg("second") = false, py::arg("flags") = false,
        "What nodes, in what order, and how much memory.");

  py::class_<Frames>(m, "Frames")
      .def(py::init(&frames_of), py::arg("courses"))
      .def_readonly("slots", &Frames::slots)
      .def_readonly("steps", &Frames::steps)
      .def_readonly("forward_rows", &Frames::forward_rows)
      .def_readonly("needs", &Frames::needs)
      .def_readonly("registers", &Frames::registers)
      .def_property_readonly("slot_rows",
                             [](const Frames& frames) {
                               std::vector<std::pair<int, int>> rows;
                               for (const auto& [cond, uncond] : frames.slot_rows) rows.emplace_back(cond, uncond);
                               return rows;
                             })
      .def_property_readonly("words", [](const Frames& frames) {
        const auto words = static_cast<py::ssize_t>(frames.words.size()) / frames.steps;
        return py::array_t<std::uint32_t>({static_cast<py::ssize_t>(frames.steps), words}, frames.words.data());
      });
  m.def(
      "frame_layout",
      [](int slots, bool second) {
        if (slots < 1) throw py::value_error("slots must be at least 1, got " + std::to_string(slots));
        std::map<std::string, std::size_t> parts;
        for (const auto& [part, word] : FrameLayout(slots, second).parts()) parts[name_of(part)] = word;
        return parts;
      },
      py::arg("slots"), py::arg("second") = false, "Where in a frame each part begins, in words.");
  py::class_<Trajectory>(m, "Trajectory")
      .def(py::init([](std::shared_ptr<Context> context, const TrajectoryPlan& plan, const StepProgram& program,
                       const StepNeeds& needs, const StepArguments& arguments,
                       const std::map<int, const Graph*>& forwards) {
             whole(forwards, "a graph");
             const ReleasedGil nogil;
             return std::make_unique<Trajectory>(std::move(context), plan, program, needs, arguments, forwards);
           }),
           py::arg("context").none(false), py::arg("plan"), py::arg("program"), py::arg("needs"), py::arg("arguments"),
           py::arg("forwards"))
      .def("load", py::overload_cast<const Stream&, const Frames&>(&Trajectory::load), py::arg("stream"),
           py::arg("frames"), NoGil())
      .def("launch", &Trajectory::launch, py::arg("stream"), NoGil());
}

}  // namespace stepfuse
