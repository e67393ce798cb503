#include <map>
#include <memory>

#include "../cuda/slot_memory.h"
#include "../cuda/step_program.h"
#include "bind_cuda.h"

namespace stepfuse {

namespace {

using namespace cuda;

StepArguments arguments_from(const std::map<std::string, std::uint64_t>& values) {
  StepArguments arguments;
  for (const auto& [name, value] : values) {
    const std::optional<StepArgument> argument = step_argument(name);
    if (!argument) throw py::value_error("the kernel takes no " + name);
    arguments.set(*argument, value);
  }
  return arguments;
}

void bind_kernels(py::module_& m) {
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
           py::arg("module").none(false), py::arg("name"), py::arg("arguments"), py::arg("block"), py::arg("num_warps"),
           py::arg("shared_bytes") = 0, py::arg("grid") = "tiles")
      .def(
          "launch",
          [](const StepKernel& kernel, const Stream& stream, int slots,
             const std::map<std::string, std::uint64_t>& values) {
            const StepArguments arguments = arguments_from(values);
            for (const auto& [name, value] : values)
              if (!kernel.takes(*step_argument(name))) throw py::value_error("the kernel takes no " + name);
            launch(stream, kernel.launch(slots, arguments));
          },
          py::arg("stream"), py::arg("slots"), py::arg("values"));

  using Kernels = std::map<int, std::shared_ptr<StepKernel>>;
  using Kernel = std::shared_ptr<StepKernel>;
  py::class_<StepNeeds>(m, "StepNeeds")
      .def(py::init([](bool noise, bool guidance, bool threshold, bool keep, bool second, bool renorm) {
             return StepNeeds{noise, guidance, threshold, keep, second, renorm};
           }),
           py::kw_only(), py::arg("noise") = false, py::arg("guidance") = false, py::arg("threshold") = false,
           py::arg("keep") = false, py::arg("second") = false, py::arg("renorm") = false)
      .def_readonly("noise", &StepNeeds::noise)
      .def_readonly("guidance", &StepNeeds::guidance)
      .def_readonly("threshold", &StepNeeds::threshold)
      .def_readonly("keep", &StepNeeds::keep)
      .def_readonly("second", &StepNeeds::second)
      .def_readonly("renorm", &StepNeeds::renorm)
      .def("__eq__", &StepNeeds::operator==, py::is_operator())
      .def("__hash__", [](const StepNeeds& needs) {
        return needs.noise | needs.guidance << 1 | needs.threshold << 2 | needs.keep << 3 | needs.second << 4 |
               needs.renorm << 5;
      });
  py::class_<StepArguments>(m, "StepArguments").def(py::init(&arguments_from), py::arg("values"));
  py::implicitly_convertible<py::dict, StepArguments>();
  py::class_<StepProgram, std::shared_ptr<StepProgram>>(m, "StepProgram")
      .def(py::init([](const Kernels& plain, const Kernels& noise, Kernel sums, Kernel guided, Kernel counts,
                       Kernel thresholded, Kernel keep, const Kernels& second, Kernel renormed) {
             for (const Kernels* kernels : {&plain, &noise, &second}) whole(*kernels, "a kernel");
             return std::make_shared<StepProgram>(StepProgram::Kernels{{plain.begin(), plain.end()},
                                                                       {noise.begin(), noise.end()},
                                                                       {second.begin(), second.end()},
                                                                       std::move(sums),
                                                                       std::move(guided),
                                                                       std::move(counts),
                                                                       std::move(thresholded),
                                                                       std::move(keep),
                                                                       std::move(renormed)});
           }),
           py::arg("plain"), py::arg("noise"), py::arg("guidance_sums") = Kernel(), py::arg("guided_rows") = Kernel(),
           py::arg("magnitude_counts") = Kernel(), py::arg("thresholded_rows") = Kernel(),
           py::arg("keep_known") = Kernel(), py::arg("second") = Kernels(), py::arg("renormed_predictions") = Kernel())
      .def("scratch_bytes", &StepProgram::scratch_bytes, py::arg("slots"), py::arg("n"), py::arg("needs"))
      .def(
          "launch",
          [](const StepProgram& program, const Stream& stream, int slots, const StepNeeds& needs,
             const StepArguments& arguments, CUdeviceptr frame) {
            for (const Launch& one : program.launches(slots, needs, arguments, frame)) launch(stream, one);
          },
          py::arg("stream"), py::arg("slots"), py::arg("needs"), py::arg("arguments"), py::arg("frame"),
          "One run over a frame: its rows are adapted in place.");
}

void bind_slots(py::module_& m) {
  const auto buffer = py::return_value_policy::reference_internal;
  py::class_<SlotMemory>(m, "SlotMemory")
      .def(py::init([](const Stream& stream, std::int64_t elements, bool integer_timestep, int max_rows) {
             const ModelSpec spec{
                 elements, integer_timestep ? TimestepType::Int64 : TimestepType::Float32, {}, max_rows};
             auto memory = std::make_unique<SlotMemory>(stream, spec, SlotMemory::Use::StaticBatch);
             memory->reserve(max_rows);
             return memory;
           }),
           py::arg("stream"), py::arg("elements"), py::arg("integer_timestep"), py::arg("max_rows"),
           py::keep_alive<1, 2>(), "Memory for the samples of a static batch, a slot for each row of a forward.")
      .def("reserve_registers", &SlotMemory::reserve_registers, py::arg("count"))
      .def("reserve_known", &SlotMemory::reserve_known)
      .def("reserve_scratch", &SlotMemory::reserve_scratch, py::arg("bytes"))
      .def_property_readonly("x", &SlotMemory::x, buffer)
      .def_property_readonly(
          "h", [](const SlotMemory& memory) { return memory.h(); }, buffer)
      .def_property_readonly("seed", &SlotMemory::seed, buffer)
      .def_property_readonly("known", &SlotMemory::known, buffer)
      .def(
          "arguments",
          [](const SlotMemory& memory, CUdeviceptr sample, CUdeviceptr timestep, CUdeviceptr prediction) {
            return memory.arguments({sample, timestep, prediction}, false);
          },
          py::kw_only(), py::arg("sample"), py::arg("timestep"), py::arg("prediction"),
          "Of all kernels of a step over this memory and a network's rows.");
}

}  // namespace

void bind_cuda_step(py::module_& m) {
  bind_kernels(m);
  bind_slots(m);
}

}  // namespace stepfuse
