#include <pybind11/functional.h>

#include <map>
#include <memory>

#include "../cuda/budget.h"
#include "../cuda/step_program.h"
#include "../cuda/trajectory.h"
#include "bindings.h"

namespace stepfuse {

namespace {

using namespace cuda;

using NoGil = py::call_guard<py::gil_scoped_release>;

template <class Handle>
std::uintptr_t address_of(Handle handle) {
  return reinterpret_cast<std::uintptr_t>(handle);
}

template <class T>
std::unique_ptr<T> borrowed(const ContextPtr& context, std::uintptr_t address) {
  return std::make_unique<T>(T::borrow(context, reinterpret_cast<decltype(std::declval<T>().get())>(address)));
}

// A context for libraries that work in the calling thread's, such as TensorRT.
class Current {
 public:
  explicit Current(std::shared_ptr<Context> context) : context_(std::move(context)) {}
  void enter() { scope_.emplace(*context_); }
  void exit() { scope_.reset(); }

 private:
  std::shared_ptr<Context> context_;
  std::optional<Context::Scope> scope_;
};

void bind_device(py::module_& m) {
  py::class_<Context, std::shared_ptr<Context>>(m, "Context")
      .def_property_readonly("device", &Context::device)
      .def_property_readonly("name", &Context::name)
      .def_property_readonly("compute_capability", &Context::compute_capability)
      .def_property_readonly("multiprocessors", &Context::multiprocessors)
      .def_property_readonly("driver_version", [](const Context& c) { return version_text(c.driver().version()); })
      .def_property_readonly("has_while_nodes", [](const Context& c) { return c.driver().has(kWhileNodes); })
      .def_property_readonly("memory", [](const Context& c) {
        const MemoryInfo info = c.memory();
        return std::pair(info.free, info.total);
      });
  py::class_<Current>(m, "Current")
      .def(py::init<std::shared_ptr<Context>>(), py::arg("context"))
      .def("__enter__", &Current::enter)
      .def("__exit__", [](Current& self, const py::args&) { self.exit(); });
  m.def(
      "open", [](int device, const std::string& driver) { return Context::open(Driver::load(driver), device); },
      py::arg("device") = 0, py::arg("driver") = "libcuda.so.1", NoGil(), "The primary context of a GPU.");

  py::class_<Event>(m, "Event")
      .def(py::init([](std::shared_ptr<Context> context) { return Event(std::move(context)); }), py::arg("context"))
      .def("synchronize", &Event::synchronize, NoGil())
      .def("seconds_since", &Event::seconds_since, py::arg("start"));
  py::class_<Stream>(m, "Stream")
      .def(py::init([](std::shared_ptr<Context> context) { return Stream(std::move(context)); }), py::arg("context"))
      .def_static(
          "borrow",
          [](std::shared_ptr<Context> context, std::uintptr_t address) { return borrowed<Stream>(context, address); },
          py::arg("context"), py::arg("address"))
      .def_property_readonly("address", [](const Stream& stream) { return address_of(stream.get()); })
      .def("synchronize", &Stream::synchronize, NoGil())
      .def("record", &Stream::record, py::arg("event"))
      .def("wait", &Stream::wait, py::arg("event"));

  py::class_<HostBuffer>(m, "HostBuffer", py::buffer_protocol())
      .def(py::init([](std::shared_ptr<Context> context, std::size_t bytes) {
             return std::make_unique<HostBuffer>(std::move(context), bytes);
           }),
           py::arg("context"), py::arg("bytes"))
      .def_buffer([](HostBuffer& buffer) {
        return py::buffer_info(static_cast<std::uint8_t*>(buffer.data()), static_cast<py::ssize_t>(buffer.bytes()));
      });
  py::class_<DeviceBuffer>(m, "DeviceBuffer")
      .def(py::init([](std::shared_ptr<Context> context, std::size_t bytes) {
             return std::make_unique<DeviceBuffer>(std::move(context), bytes);
           }),
           py::arg("context"), py::arg("bytes"))
      .def_property_readonly("address", &DeviceBuffer::get)
      .def_property_readonly("bytes", &DeviceBuffer::bytes)
      .def(
          "upload",
          [](DeviceBuffer& buffer, const Stream& stream, const py::buffer& from, std::size_t offset) {
            const py::buffer_info info = from.request();
            buffer.upload(stream, info.ptr, static_cast<std::size_t>(info.size * info.itemsize), offset);
          },
          py::arg("stream"), py::arg("source"), py::arg("offset") = 0)
      .def(
          "download",
          [](const DeviceBuffer& buffer, const Stream& stream, const py::buffer& to, std::size_t offset) {
            const py::buffer_info info = to.request(true);
            buffer.download(stream, info.ptr, static_cast<std::size_t>(info.size * info.itemsize), offset);
          },
          py::arg("stream"), py::arg("target"), py::arg("offset") = 0);
}

void bind_graphs(py::module_& m) {
  py::class_<Module, std::shared_ptr<Module>>(m, "Module")
      .def(py::init([](std::shared_ptr<Context> context, const py::bytes& image) {
             return std::make_shared<Module>(std::move(context), std::string(image));
           }),
           py::arg("context"), py::arg("image"))
      .def(
          "info",
          [](const Module& module, const std::string& name) {
            const FunctionInfo info = module.info(module.function(name));
            py::dict found;
            found["registers"] = info.registers;
            found["local_bytes"] = info.local_bytes;
            found["max_threads"] = info.max_threads;
            return found;
          },
          py::arg("name"));
  py::class_<StepKernel, std::shared_ptr<StepKernel>>(m, "StepKernel")
      .def(py::init([](std::shared_ptr<Module> module, const std::string& name,
                       const std::vector<std::tuple<std::string, std::string, bool>>& arguments, int block,
                       int num_warps, unsigned shared_bytes, const std::string& grid) {
             if (grid != "tiles" && grid != "slots") throw py::value_error("grid must be tiles or slots, got " + grid);
             KernelSignature signature{{}, block, num_warps, shared_bytes, grid == "tiles" ? Grid::Tiles : Grid::Slots};
             for (const auto& [argument, type, divisible_by_16] : arguments)
               signature.arguments.push_back({argument, argument_type(type), divisible_by_16});
             return std::make_shared<StepKernel>(std::move(module), name, std::move(signature));
           }),
           py::arg("module"), py::arg("name"), py::arg("arguments"), py::arg("block"), py::arg("num_warps"),
           py::arg("shared_bytes") = 0, py::arg("grid") = "tiles")
      .def(
          "launch",
          [](const StepKernel& kernel, const Stream& stream, int slots, const Values& values) {
            launch(stream, kernel.launch(slots, values));
          },
          py::arg("stream"), py::arg("slots"), py::arg("values"));

  using Kernels = std::map<int, std::shared_ptr<StepKernel>>;
  using Kernel = std::shared_ptr<StepKernel>;
  py::class_<StepNeeds>(m, "StepNeeds")
      .def(py::init([](bool noise, bool rescale, bool threshold, bool keep) {
             return StepNeeds{noise, rescale, threshold, keep};
           }),
           py::kw_only(), py::arg("noise") = false, py::arg("rescale") = false, py::arg("threshold") = false,
           py::arg("keep") = false)
      .def_readonly("noise", &StepNeeds::noise)
      .def_readonly("rescale", &StepNeeds::rescale)
      .def_readonly("threshold", &StepNeeds::threshold)
      .def_readonly("keep", &StepNeeds::keep)
      .def("__eq__", &StepNeeds::operator==, py::is_operator())
      .def("__hash__", [](const StepNeeds& needs) {
        return needs.noise | needs.rescale << 1 | needs.threshold << 2 | needs.keep << 3;
      });
  py::class_<StepProgram, std::shared_ptr<StepProgram>>(m, "StepProgram")
      .def(py::init([](const Kernels& plain, const Kernels& noise, Kernel sums, Kernel rescaled, Kernel thresholded,
                       Kernel keep) {
             return std::make_shared<StepProgram>(StepProgram::Kernels{{plain.begin(), plain.end()},
                                                                       {noise.begin(), noise.end()},
                                                                       std::move(sums),
                                                                       std::move(rescaled),
                                                                       std::move(thresholded),
                                                                       std::move(keep)});
           }),
           py::arg("plain"), py::arg("noise"), py::arg("guidance_sums") = Kernel(), py::arg("rescaled_rows") = Kernel(),
           py::arg("thresholded_rows") = Kernel(), py::arg("keep_known") = Kernel())
      .def("sums_bytes", &StepProgram::sums_bytes, py::arg("slots"), py::arg("n"))
      .def(
          "launch",
          [](const StepProgram& program, const Stream& stream, int slots, const StepNeeds& needs, const Values& values,
             CUdeviceptr frame) {
            for (const Launch& one : program.launches(slots, needs, values, frame)) launch(stream, one);
          },
          py::arg("stream"), py::arg("slots"), py::arg("needs"), py::arg("values"), py::arg("frame"),
          "One run over a frame: its rows are adapted in place.");

  py::class_<Graph>(m, "Graph")
      .def_static(
          "borrow",
          [](std::shared_ptr<Context> context, std::uintptr_t address) { return borrowed<Graph>(context, address); },
          py::arg("context"), py::arg("address"))
      .def_property_readonly("address", [](const Graph& graph) { return address_of(graph.get()); })
      .def("unrepeatable", &Graph::unrepeatable, "What a trajectory cannot repeat, a node each.");
  py::class_<Capture>(m, "Capture")
      .def(py::init<const Stream&>(), py::arg("stream"), py::keep_alive<1, 2>())
      .def("end", &Capture::end);
  py::class_<GraphExec>(m, "GraphExec")
      .def(py::init<const Graph&>(), py::arg("graph"), NoGil())
      .def("upload", &GraphExec::upload, py::arg("stream"), NoGil())
      .def("launch", &GraphExec::launch, py::arg("stream"), NoGil());
}

// (rows, conditioned), and if there are any its Adaptive and its levels.
Course course_of(const py::tuple& given) {
  if (given.size() < 2 || given.size() > 4)
    throw py::value_error("a course is (rows, conditioned, adaptive, levels), of which the first two suffice");
  const auto rows = given[0].cast<FloatArray>();
  if (rows.ndim() != 2 || rows.shape(1) != kStepColumns)
    throw py::value_error("a course's rows must have shape (steps, 16)");
  Course course{{}, given[1].cast<bool>()};
  for (py::ssize_t i = 0; i < rows.shape(0); ++i) course.rows.push_back(row_from(rows.data(i, 0)));
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

void bind_trajectory(py::module_& m) {
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
        py::arg("buckets"), "What nodes, in what order, and how much memory.");

  py::class_<Frames>(m, "Frames")
      .def(py::init(&frames_of), py::arg("courses"))
      .def_readonly("slots", &Frames::slots)
      .def_readonly("steps", &Frames::steps)
      .def_readonly("forward_rows", &Frames::forward_rows)
      .def_readonly("needs", &Frames::needs)
      .def_readonly("uses_history", &Frames::uses_history)
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
      "frame_layout", [](int slots) { return FrameLayout(slots).parts(); }, py::arg("slots"),
      "Where in a frame each part begins, in words.");
  py::class_<Trajectory>(m, "Trajectory")
      .def(py::init([](std::shared_ptr<Context> context, const TrajectoryPlan& plan, const StepProgram& program,
                       const StepNeeds& needs, const Values& values, const std::map<int, const Graph*>& forwards) {
             py::gil_scoped_release nogil;
             return std::make_unique<Trajectory>(std::move(context), plan, program, needs, values, forwards);
           }),
           py::arg("context"), py::arg("plan"), py::arg("program"), py::arg("needs"), py::arg("values"),
           py::arg("forwards"))
      .def("load", &Trajectory::load, py::arg("stream"), py::arg("frames"), NoGil())
      .def("launch", &Trajectory::launch, py::arg("stream"), NoGil());
}

void bind_budget(py::module_& m) {
  m.def("bucket_rows", &bucket_rows, py::arg("max_rows"), "Row counts worth a graph of their own, the largest first.");
  m.def("bucket_for", &bucket_for, py::arg("buckets"), py::arg("rows"), "The smallest bucket of at least rows, or -1.");
  m.def(
      "plan_budget",
      [](const std::vector<std::tuple<int, std::size_t, std::size_t>>& buckets, std::size_t fixed_bytes,
         std::size_t available_bytes) {
        std::vector<Bucket> read;
        for (const auto& [rows, pool_bytes, own_bytes] : buckets) read.push_back({rows, pool_bytes, own_bytes});
        const Budget budget = plan_budget(read, fixed_bytes, available_bytes);
        const auto rows_of = [](const std::vector<Bucket>& of) {
          std::vector<int> rows;
          for (const Bucket& bucket : of) rows.push_back(bucket.rows);
          return rows;
        };
        return std::tuple(rows_of(budget.kept), rows_of(budget.given_up), budget.bytes);
      },
      py::arg("buckets"), py::arg("fixed_bytes"), py::arg("available_bytes"),
      "Buckets as (rows, pool_bytes, own_bytes) to (rows kept, rows given up, bytes).");
  m.def(
      "capture_buckets",
      [](std::vector<int> buckets, const std::function<bool(int)>& capture) {
        const Captured captured = capture_buckets(std::move(buckets), capture);
        return std::pair(captured.kept, captured.given_up);
      },
      py::arg("buckets"), py::arg("capture"), "Captures the largest first; capture(rows) says if there was memory.");
}

}  // namespace

void bind_cuda(py::module_& m) {
  py::module_ sub =
      m.def_submodule("cuda", "The GPU through the CUDA driver, which is opened when it is first asked for.");
  bind_device(sub);
  bind_graphs(sub);
  bind_trajectory(sub);
  bind_budget(sub);
}

}  // namespace stepfuse
