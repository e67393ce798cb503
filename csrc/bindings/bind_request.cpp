#include "../cuda/memory.h"
#include "bound_server.h"
#include "callbacks.h"

namespace stepfuse {

namespace {

// The loop reads and writes through bare pointers: a wrong size must not get that far.
void require_bytes(const char* name, const py::array& array, std::size_t expected) {
  constexpr int kPlain = py::array::c_style | py::detail::npy_api::NPY_ARRAY_ALIGNED_;
  if ((array.flags() & kPlain) != kPlain)
    throw py::value_error(std::string(name) + " must be C-contiguous and aligned");
  if (static_cast<std::size_t>(array.nbytes()) != expected)
    throw py::value_error(std::string(name) + " must have " + std::to_string(expected) + " bytes, got " +
                          std::to_string(array.nbytes()));
}

std::vector<const void*> pointers(const char* name, const std::vector<py::array>& values, const ModelSpec& spec) {
  std::vector<const void*> found;
  for (const py::array& value : values) {
    if (found.size() < spec.cond_bytes.size()) require_bytes(name, value, spec.cond_bytes[found.size()]);
    found.push_back(value.data());
  }
  return found;
}

// A known region with the arrays that it points into.
struct KnownRegionArrays {
  KnownRegionArrays(FloatArray image_array, std::optional<FloatArray> mask_array, const FloatArray& levels)
      : image(std::move(image_array)), mask(std::move(mask_array)) {
    if (levels.ndim() != 2 || levels.shape(1) != 2) throw py::value_error("levels have shape (S + 1, 2)");
    KnownRegion found{image.data(), mask ? mask->data() : nullptr, {}};
    for (py::ssize_t i = 0; i < levels.shape(0); ++i) found.levels.push_back({levels.at(i, 0), levels.at(i, 1)});
    known = std::make_shared<const KnownRegion>(std::move(found));
  }

  FloatArray image;
  std::optional<FloatArray> mask;
  std::shared_ptr<const KnownRegion> known;
};

std::shared_ptr<const KnownRegion> known_region_of(const py::object& given, std::size_t state_bytes) {
  const auto& arrays = given.cast<const KnownRegionArrays&>();
  require_bytes("image", arrays.image, state_bytes);
  if (arrays.mask) require_bytes("mask", *arrays.mask, state_bytes);
  return arrays.known;
}

// Of a buffer in a GPU's memory that takes one sample.
std::uint64_t address_of(const py::object& device_copy, std::size_t state_bytes) {
  const auto& buffer = device_copy.cast<const cuda::DeviceBuffer&>();
  if (buffer.bytes() != state_bytes)
    throw py::value_error("device_copy must have " + std::to_string(state_bytes) + " bytes, got " +
                          std::to_string(buffer.bytes()));
  return buffer.get();
}

double absolute(std::optional<double> seconds_from_now) {
  return seconds_from_now ? Server::now() + *seconds_from_now : kNever;
}

std::shared_ptr<Table> table_from(const FloatArray& rows, float init_scale, const Adaptive& adaptive) {
  Lines lines = lines_from(rows);
  return std::make_shared<Table>(std::move(lines.rows), init_scale, adaptive, std::move(lines.second));
}

}  // namespace

BoundRequest BoundServer::request(std::uint64_t id, std::shared_ptr<Table> table, std::uint64_t seed, bool has_noise,
                                  FloatArray x, std::optional<FloatArray> x0, std::vector<py::array> cond,
                                  std::vector<py::array> null_cond, int priority, std::optional<double> deadline,
                                  std::optional<double> timeout, bool watched, std::shared_ptr<Gate> gate,
                                  py::object known_region, std::uint64_t adapters, py::object device_copy,
                                  py::object owner) const {
  const std::size_t state_bytes = static_cast<std::size_t>(spec_.elements) * sizeof(float);
  require_bytes("x", x, state_bytes);
  if (x0) require_bytes("x0", *x0, state_bytes);
  Request made{id,
               std::move(table),
               seed,
               has_noise,
               x.mutable_data(),
               x0 ? x0->mutable_data() : nullptr,
               pointers("cond", cond, spec_),
               pointers("null_cond", null_cond, spec_),
               priority,
               absolute(deadline),
               absolute(timeout),
               watched,
               std::move(gate),
               known_region.is_none() ? nullptr : known_region_of(known_region, state_bytes),
               adapters,
               device_copy.is_none() ? 0 : address_of(device_copy, state_bytes),
               keep_alive(py::make_tuple(x, x0, cond, null_cond, known_region, device_copy), std::move(owner))};
  return {std::move(made), identity_};
}

void bind_request(py::module_& m) {
  py::class_<Table, std::shared_ptr<Table>>(m, "Table")
      .def(py::init(&table_from), py::arg("rows"), py::arg("init_scale"), py::arg("adaptive") = Adaptive{});
  py::class_<KnownRegionArrays>(m, "KnownRegion")
      .def(py::init<FloatArray, std::optional<FloatArray>, const FloatArray&>(), py::arg("image").noconvert(),
           py::arg("mask").noconvert(), py::arg("levels"))
      .def_readonly("image", &KnownRegionArrays::image)
      .def_readonly("mask", &KnownRegionArrays::mask)
      .def_property_readonly("levels", [](const KnownRegionArrays& known) {
        const auto& levels = known.known->levels;
        return FloatArray({static_cast<py::ssize_t>(levels.size()), py::ssize_t{2}},
                          levels.empty() ? nullptr : &levels.front().signal);
      });
  py::class_<BoundRequest>(m, "Request");
  py::class_<Gate, std::shared_ptr<Gate>>(m, "Gate").def(py::init());
}

}  // namespace stepfuse
