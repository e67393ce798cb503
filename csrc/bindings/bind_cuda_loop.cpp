#include "../cuda/device_stepper.h"
#include "../cuda/graph_denoiser.h"
#include "bind_cuda.h"
#include "stepper_box.h"

namespace stepfuse {

namespace {

using namespace cuda;

Stored stored_as(const std::string& name) {
  if (name == "as_is") return Stored::AsIs;
  if (name == "float16") return Stored::Float32AsFloat16;
  if (name == "bfloat16") return Stored::Float32AsBFloat16;
  throw py::value_error("conditioning is stored as_is, or as float16 or bfloat16, got " + name);
}

// Keeps the stream alive by hand: keep_alive<0, 1> of pybind11 3.1 reads what a call with wrong arguments returns.
py::object device_stepper(const py::object& stream, std::int64_t elements, bool integer_timestep, int max_rows,
                          CUdeviceptr sample, CUdeviceptr timestep, CUdeviceptr prediction, std::size_t sample_bytes,
                          const std::vector<std::tuple<CUdeviceptr, std::size_t, std::string>>& cond,
                          const StepProgram& program, const std::map<int, std::shared_ptr<Graph>>& forwards) {
  const auto& on = stream.cast<const Stream&>();
  ModelSpec spec{elements, integer_timestep ? TimestepType::Int64 : TimestepType::Float32, {}, max_rows};
  DeviceRows rows{{sample, timestep, prediction}, sample_bytes, {}};
  for (const auto& [address, host_bytes, stored] : cond) {
    spec.cond_bytes.push_back(host_bytes);
    rows.cond.push_back({address, stored_as(stored)});
  }
  whole(forwards, "a graph");
  std::map<int, std::shared_ptr<const Graph>> captured(forwards.begin(), forwards.end());
  std::unique_ptr<StepperBox> box;
  {
    const ReleasedGil nogil;
    box = std::make_unique<StepperBox>(
        std::make_shared<DeviceStepper>(on, std::move(spec), std::move(rows), program, std::move(captured)));
  }
  py::object made = py::cast(std::move(box));
  py::detail::keep_alive_impl(made, stream);
  return made;
}

}  // namespace

void bind_cuda_loop(py::module_& m) {
  auto sub = m.attr("cuda").cast<py::module_>();
  sub.def(
      "device_stepper", &device_stepper, py::arg("stream"), py::arg("elements"), py::arg("integer_timestep"),
      py::arg("max_rows"), py::arg("sample"), py::arg("timestep"), py::arg("prediction"), py::arg("sample_bytes"),
      py::arg("cond"), py::arg("program"), py::arg("forwards") = std::map<int, std::shared_ptr<Graph>>{},
      "Samples in a GPU's memory, for a Server. cond: (address, host bytes, stored as); forwards: captured, by rows.");
  sub.def(
      "slot_bytes",
      [](int slots, std::int64_t elements) {
        if (slots < 0 || elements < 0) throw py::value_error("slots and elements must be at least 0");
        return DeviceStepper::bytes(slots, elements);
      },
      py::arg("slots"), py::arg("elements"), "Device memory that so many samples' states take.");
  py::class_<GraphDenoiser, Denoiser>(sub, "GraphDenoiser")
      .def(py::init([](const Stream& stream, const std::map<int, const Graph*>& forwards) {
             return std::make_unique<GraphDenoiser>(stream, whole(forwards, "a graph"));
           }),
           py::arg("stream"), py::arg("forwards"), py::keep_alive<1, 2>());
}

}  // namespace stepfuse
