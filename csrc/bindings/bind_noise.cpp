#include <limits>
#include <string>

#include "../core/step/noise.h"
#include "bindings.h"

namespace stepfuse {

namespace {

FloatArray normal(std::uint64_t seed, std::uint32_t step, std::uint32_t stream, std::int64_t n, std::int64_t first,
                  const std::optional<std::string>& isa) {
  if (n < 0) throw py::value_error("n must be at least 0, got " + std::to_string(n));
  if (first < 0 || first % 4)
    throw py::value_error("first must be a multiple of 4 and at least 0, got " + std::to_string(first));
  if (n > std::numeric_limits<std::int64_t>::max() - first)
    throw py::value_error("first and n must fit 64 bits together, got " + std::to_string(first) + " and " +
                          std::to_string(n));
  const Isa chosen = isa_named(isa);
  FloatArray out(n);
  float* data = out.mutable_data();
  ReleasedGil nogil;
  fill_normal(seed, step, static_cast<NoiseStream>(stream), first, n, data, chosen);
  return out;
}

}  // namespace

void bind_noise(py::module_& m) {
  m.def("normal", &normal, py::arg("seed"), py::arg("step"), py::arg("stream"), py::arg("n"), py::arg("first") = 0,
        py::arg("isa") = py::none(), "Elements [first, first + n) of one sample's standard normal noise, float32.");
  m.def(
      "isas",
      [] {
        std::vector<std::string> names;
        for (const Isa isa : available_isas()) names.emplace_back(name_of(isa));
        return names;
      },
      "Instruction sets that this machine has a kernel for, the best one last.");
}

}  // namespace stepfuse
