#include "../core/loop/host_stepper.h"
#include "bindings.h"
#include "stepper_box.h"

namespace stepfuse {

namespace {

struct HostStepperBox : StepperBox {
  explicit HostStepperBox(const ModelSpec& spec) : HostStepperBox(std::make_shared<HostStepper>(spec)) {}
  explicit HostStepperBox(std::shared_ptr<HostStepper> made) : StepperBox(made), buffers(&made->buffers()) {}

  ForwardBuffers* buffers;
};

template <class T>
py::array view(AlignedBuffer& buffer, int rows, py::handle owner) {
  const auto columns = static_cast<py::ssize_t>(buffer.bytes() / sizeof(T)) / rows;
  return py::array_t<T>({static_cast<py::ssize_t>(rows), columns}, static_cast<const T*>(buffer.data()), owner);
}

py::dict buffer_views(py::object self) {
  ForwardBuffers& b = *self.cast<HostStepperBox&>().buffers;
  const int rows = b.spec.max_rows;
  const bool integer = b.spec.timestep == TimestepType::Int64;
  py::list cond;
  for (AlignedBuffer& buffer : b.cond) cond.append(view<std::uint8_t>(buffer, rows, self));
  py::dict found;
  found["sample"] = view<float>(b.sample, rows, self);
  found["timestep"] = integer ? view<std::int64_t>(b.timestep, rows, self) : view<float>(b.timestep, rows, self);
  found["cond"] = cond;
  found["prediction"] = view<float>(b.prediction, rows, self);
  return found;
}

}  // namespace

void bind_stepper(py::module_& m) {
  const auto nogil = py::call_guard<ReleasedGil>();
  py::class_<Denoiser>(m, "Denoiser")
      .def("forward", &Denoiser::forward, py::arg("rows"), py::arg("adapters") = 0, nogil);
  py::class_<StepperBox>(m, "Stepper");
  py::class_<HostStepperBox, StepperBox>(m, "HostStepper")
      .def(
          py::init([](std::int64_t elements, bool integer_timestep, std::vector<std::size_t> cond_bytes, int max_rows) {
            const auto timestep = integer_timestep ? TimestepType::Int64 : TimestepType::Float32;
            return std::make_unique<HostStepperBox>(ModelSpec{elements, timestep, std::move(cond_bytes), max_rows});
          }),
          py::arg("elements"), py::arg("integer_timestep"), py::arg("cond_bytes"), py::arg("max_rows"))
      .def("buffers", &buffer_views, "Views of the rows that a forward reads and writes.");
}

}  // namespace stepfuse
