#include <cmath>

#include "../core/step/adapt.h"
#include "../core/step/dtype.h"
#include "../core/step/fused_step.h"
#include "bindings.h"

namespace stepfuse {

namespace {

constexpr int kNumpyFloat32 = 11, kNumpyFloat16 = 23;  // NPY_FLOAT, NPY_HALF

std::string shape_of(const py::array& a) { return py::str(a.attr("shape")); }

// numpy's number of the element type; -1 if the bytes are in another order than the machine's.
int type_number(const py::array& a) {
  const py::dtype type = a.dtype();
  return type.byteorder() == '=' ? type.num() : -1;
}

// numpy has no bfloat16 of its own: packages such as ml_dtypes register one, under a number that differs by process.
bool is_bfloat16(const py::array& a) { return std::string(py::str(a.dtype())) == "bfloat16"; }

bool same_shape(const py::array& a, const py::array& b) {
  return a.ndim() == b.ndim() && std::equal(a.shape(), a.shape() + a.ndim(), b.shape());
}

// In C order, and each element where its type may lie.
constexpr int kPlain = py::array::c_style | py::detail::npy_api::NPY_ARRAY_ALIGNED_;

bool contiguous(const py::array& a) { return (a.flags() & kPlain) == kPlain; }

py::array as_array(const char* name, py::handle value) {
  if (!py::isinstance<py::array>(value))
    throw py::type_error(std::string(name) + " must be a numpy array, got " + Py_TYPE(value.ptr())->tp_name);
  return py::reinterpret_borrow<py::array>(value);
}

void require_like(const char* name, const py::array& a, const py::array& x) {
  if (type_number(a) != type_number(x))
    throw py::type_error(std::string(name) + " must have the dtype of x, " + std::string(py::str(x.dtype())) +
                         ", got " + std::string(py::str(a.dtype())));
  if (!same_shape(a, x))
    throw py::value_error(std::string(name) + " must have the shape of x, " + shape_of(x) + ", got " + shape_of(a));
}

// An array that is only read: a strided one is copied.
py::array input(const char* name, py::handle value, const py::array& x) {
  py::array a = as_array(name, value);
  require_like(name, a, x);
  return contiguous(a) ? a : py::array::ensure(a, kPlain);
}

// An array that is written in place.
py::array output(const char* name, py::handle value, const py::array& x) {
  py::array a = as_array(name, value);
  require_like(name, a, x);
  if (!contiguous(a) || !a.writeable())
    throw py::value_error(std::string(name) + " is written in place: it must be C-contiguous and writeable");
  return a;
}

template <class Check>
std::optional<py::array> if_given(Check check, const char* name, py::handle value, const py::array& x) {
  if (value.is_none()) return std::nullopt;
  return check(name, value, x);
}

struct Rows {
  FloatArray values;
  int columns;      // 16, or 32 with a second line
  bool per_sample;  // (B, columns): one row a sample of the batch

  const float* at(std::int64_t i) const { return values.data() + (per_sample ? i * columns : 0); }
};

Rows rows_of(py::handle value, const py::array& x) {
  auto values =
      py::isinstance<FloatArray>(value) ? py::reinterpret_borrow<FloatArray>(value) : FloatArray::ensure(value);
  if (!values) {
    PyErr_Clear();
    throw py::type_error("row must be an array of numbers, got " + std::string(py::repr(value)));
  }
  const py::ssize_t columns = values.ndim() == 1 || values.ndim() == 2 ? values.shape(values.ndim() - 1) : 0;
  const bool per_sample = values.ndim() == 2 && x.ndim() > 0 && values.shape(0) == x.shape(0);
  if (!one_or_two_lines(columns) || (values.ndim() == 2 && !per_sample))
    throw py::value_error("row must have shape (16,) or (32,), or (B, 16) or (B, 32) with B samples in x, got " +
                          shape_of(values) + " for x " + shape_of(x));
  return {std::move(values), static_cast<int>(columns), per_sample};
}

void require_inputs(const float* columns, bool two_lines, int registers, bool has_noise) {
  const auto row = line_from<StepRow>(columns);
  const auto second = two_lines ? line_from<SecondLine>(columns + kLineColumns) : SecondLine{};
  const int used = registers_of(row, &second);
  static constexpr const char* kMissing[] = {"h", "h2", "h3"};
  if (used > registers)
    throw py::value_error("this row uses history (q_h = " + std::to_string(row.q_h) + "): pass " + kMissing[registers] +
                          ", an array like x");
  if (!has_noise && (row.adds_noise() || second.adds_noise()))
    throw py::value_error("this row adds noise (q_z = " + std::to_string(row.q_z) + "): pass z, an array like x");
}

// An element may be overwritten by its own successor, never by another element's.
void require_apart(const char* name, const py::array& written, const char* other_name, const py::array& other) {
  const auto* begin = static_cast<const char*>(written.data());
  const auto* other_begin = static_cast<const char*>(other.data());
  if (begin != other_begin && begin < other_begin + other.nbytes() && other_begin < begin + written.nbytes())
    throw py::value_error(std::string(name) + " must be the same memory as " + other_name + ", or apart from it");
}

py::array step(py::handle x_arg, py::handle eps_arg, py::handle row_arg, py::handle eps_uncond_arg, py::handle h_arg,
               py::handle z_arg, py::handle out_arg, const std::optional<std::string>& isa_name, py::handle h2_arg,
               py::handle h3_arg) {
  const py::array given = as_array("x", x_arg);
  const int dtype = type_number(given);
  if (dtype != kNumpyFloat32 && dtype != kNumpyFloat16 && !is_bfloat16(given))
    throw py::type_error("x must be float32, float16 or bfloat16, got " + std::string(py::str(given.dtype())));
  const py::array x = contiguous(given) ? given : py::array::ensure(given, kPlain);
  const py::array eps = input("eps", eps_arg, x);
  const auto eps_uncond = if_given(input, "eps_uncond", eps_uncond_arg, x);
  const auto z = if_given(input, "z", z_arg, x);
  const std::optional<py::array> h[] = {if_given(output, "h", h_arg, x), if_given(output, "h2", h2_arg, x),
                                        if_given(output, "h3", h3_arg, x)};
  static constexpr const char* kRegisters[] = {"h", "h2", "h3"};
  int registers = 0;
  while (registers < 3 && h[registers]) ++registers;
  py::array out = out_arg.is_none() ? py::array(x.dtype(), std::vector<py::ssize_t>(x.shape(), x.shape() + x.ndim()))
                                    : output("out", out_arg, x);
  const Rows rows = rows_of(row_arg, x);
  const std::int64_t samples = rows.per_sample ? x.shape(0) : 1;
  const std::int64_t n = samples ? x.size() / samples : 0;
  for (std::int64_t i = 0; i < samples; ++i)
    require_inputs(rows.at(i), rows.columns > kLineColumns, registers, z.has_value());
  const std::pair<const char*, const py::array*> read_ones[] = {
      {"x", &x}, {"eps", &eps}, {"eps_uncond", eps_uncond ? &*eps_uncond : nullptr}, {"z", z ? &*z : nullptr}};
  const std::pair<const char*, const py::array*> written[] = {{"out", &out},
                                                              {kRegisters[0], h[0] ? &*h[0] : nullptr},
                                                              {kRegisters[1], h[1] ? &*h[1] : nullptr},
                                                              {kRegisters[2], h[2] ? &*h[2] : nullptr}};
  for (std::size_t i = 0; i < std::size(written); ++i) {
    const auto& [name, array] = written[i];
    if (!array) continue;
    for (const auto& [other, a] : read_ones)
      if (a) require_apart(name, *array, other, *a);
    for (std::size_t k = 0; k < i; ++k) {
      const auto& [other, a] = written[k];
      if (!a) continue;
      require_apart(name, *array, other, *a);
      if (array->data() == a->data())
        throw py::value_error(std::string(name) + " and " + other + " must be two arrays: each is written");
    }
  }
  const Isa isa = isa_named(isa_name);

  const auto run = [&](auto element) {
    using T = decltype(element);
    const auto read = [](const std::optional<py::array>& a) { return a ? static_cast<const T*>(a->data()) : nullptr; };
    // Written in place, as checked.
    const auto kept = [](const std::optional<py::array>& a) {
      return a ? static_cast<T*>(const_cast<void*>(a->data())) : nullptr;
    };
    StepSpan<T> span{
        n,       static_cast<const T*>(x.data()),    static_cast<const T*>(eps.data()), read(eps_uncond), kept(h[0]),
        read(z), static_cast<T*>(out.mutable_data())};
    span.h2 = kept(h[1]);
    span.h3 = kept(h[2]);
    const float* values = rows.values.data();
    ReleasedGil nogil;
    fused_steps(values, rows.columns, rows.per_sample, samples, span, isa);
  };
  if (dtype == kNumpyFloat32) {
    run(float{});
  } else if (dtype == kNumpyFloat16) {
    run(Half{});
  } else {
    run(BFloat16{});
  }
  return out;
}

Blend blend_named(const std::string& name) {
  static constexpr std::pair<const char*, Blend> kBlends[] = {{"plain", Blend::Plain},
                                                              {"projected", Blend::Projected},
                                                              {"projected_clean", Blend::ProjectedClean},
                                                              {"optimized_scale", Blend::OptimizedScale}};
  for (const auto& [known, blend] : kBlends)
    if (name == known) return blend;
  throw py::value_error("blend must be plain, projected, projected_clean or optimized_scale, got " + name);
}

Adaptive adaptive(float guidance_rescale, float threshold_ratio, float largest_threshold, const std::string& blend,
                  float eta, float norm_threshold, int renorm_patch, const std::tuple<int, int, int>& shape) {
  const auto share = [](float value) { return value >= 0 && value <= 1; };
  if (!share(guidance_rescale) || !share(threshold_ratio) || !(largest_threshold >= 1))
    throw py::value_error("guidance_rescale and threshold_ratio must be 0 to 1 and largest_threshold at least 1, got " +
                          std::to_string(guidance_rescale) + ", " + std::to_string(threshold_ratio) + " and " +
                          std::to_string(largest_threshold));
  if (!std::isfinite(eta) || !std::isfinite(norm_threshold) || norm_threshold < 0)
    throw py::value_error("eta must be finite and norm_threshold finite and at least 0, got " + std::to_string(eta) +
                          " and " + std::to_string(norm_threshold));
  const auto [channels, height, width] = shape;
  const Renorm renorm{renorm_patch, channels, height, width};
  if (renorm_patch < 0 || (renorm.any() && (channels < 1 || height < 1 || width < 1 || height % renorm_patch != 0 ||
                                            width % renorm_patch != 0)))
    throw py::value_error("renorm_patch must divide height and width, or be 0, got " + std::to_string(renorm_patch) +
                          " and shape " + std::string(py::str(py::cast(shape))));
  return {{guidance_rescale, blend_named(blend), eta, norm_threshold}, threshold_ratio, largest_threshold, renorm};
}

FloatArray adapted_row(const FloatArray& columns, const Adaptive& adaptive, const FloatArray& x, const FloatArray& eps,
                       const std::optional<FloatArray>& eps_uncond) {
  if (columns.ndim() != 1 || !one_or_two_lines(columns.size())) throw py::value_error("a row has 16 or 32 columns");
  if (x.size() == 0 || eps.size() != x.size() || (eps_uncond && eps_uncond->size() != x.size()))
    throw py::value_error("eps and eps_uncond must have as many elements as x, and at least one");
  std::vector<float> scratch(static_cast<std::size_t>(x.size()));
  auto row = line_from<StepRow>(columns.data());
  SecondLine second{};
  const bool two_lines = columns.size() > kLineColumns;
  if (two_lines) second = line_from<SecondLine>(columns.data() + kLineColumns);
  adapt(row, &second, adaptive, x.size(), x.data(), eps.data(), eps_uncond ? eps_uncond->data() : nullptr,
        scratch.data());
  FloatArray found(columns.size());
  std::memcpy(found.mutable_data(), &row, sizeof row);
  if (two_lines) std::memcpy(found.mutable_data() + kLineColumns, &second, sizeof second);
  return found;
}

}  // namespace

void bind_step(py::module_& m) {
  py::class_<Adaptive>(m, "Adaptive")
      .def(py::init(&adaptive), py::arg("guidance_rescale") = 0.0f, py::arg("threshold_ratio") = 0.0f,
           py::arg("largest_threshold") = std::numeric_limits<float>::infinity(), py::kw_only(),
           py::arg("blend") = "plain", py::arg("eta") = 1.0f, py::arg("norm_threshold") = 0.0f,
           py::arg("renorm_patch") = 0, py::arg("shape") = std::tuple(0, 0, 0));
  m.def("adapted_row", &adapted_row, py::arg("row"), py::arg("adaptive"), py::arg("x"), py::arg("eps"),
        py::arg("eps_uncond") = py::none(), "The row with what it takes from the whole sample folded in.");
  m.def("step", &step, py::arg("x"), py::arg("eps"), py::arg("row"), py::arg("eps_uncond") = py::none(),
        py::arg("h") = py::none(), py::arg("z") = py::none(), py::arg("out") = py::none(), py::arg("isa") = py::none(),
        py::arg("h2") = py::none(), py::arg("h3") = py::none(), "The fused step; stepfuse.step documents it.");
}

}  // namespace stepfuse
