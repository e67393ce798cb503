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
  FloatArray columns;
  bool per_sample;  // (B, 16): one row a sample of the batch

  StepRow at(std::int64_t i) const { return row_from(columns.data() + (per_sample ? i * kStepColumns : 0)); }
};

Rows rows_of(py::handle value, const py::array& x) {
  auto columns =
      py::isinstance<FloatArray>(value) ? py::reinterpret_borrow<FloatArray>(value) : FloatArray::ensure(value);
  if (!columns) {
    PyErr_Clear();
    throw py::type_error("row must be an array of numbers, got " + std::string(py::repr(value)));
  }
  const bool single = columns.ndim() == 1 && columns.shape(0) == kStepColumns;
  const bool per_sample =
      columns.ndim() == 2 && columns.shape(1) == kStepColumns && x.ndim() > 0 && columns.shape(0) == x.shape(0);
  if (!single && !per_sample)
    throw py::value_error("row must have shape (16,), or (B, 16) with B samples in x, got " + shape_of(columns) +
                          " for x " + shape_of(x));
  return {std::move(columns), per_sample};
}

void require_inputs(const StepRow& row, bool has_history, bool has_noise) {
  if (!has_history && (row.reads_history() || row.keeps_history()))
    throw py::value_error("this row uses history (q_h = " + std::to_string(row.q_h) + "): pass h, an array like x");
  if (!has_noise && row.adds_noise())
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
               py::handle z_arg, py::handle out_arg, const std::optional<std::string>& isa_name) {
  const py::array given = as_array("x", x_arg);
  const int dtype = type_number(given);
  if (dtype != kNumpyFloat32 && dtype != kNumpyFloat16 && !is_bfloat16(given))
    throw py::type_error("x must be float32, float16 or bfloat16, got " + std::string(py::str(given.dtype())));
  const py::array x = contiguous(given) ? given : py::array::ensure(given, kPlain);
  const py::array eps = input("eps", eps_arg, x);
  const auto eps_uncond = if_given(input, "eps_uncond", eps_uncond_arg, x);
  const auto z = if_given(input, "z", z_arg, x);
  auto h = if_given(output, "h", h_arg, x);
  py::array out = out_arg.is_none() ? py::array(x.dtype(), std::vector<py::ssize_t>(x.shape(), x.shape() + x.ndim()))
                                    : output("out", out_arg, x);
  const Rows rows = rows_of(row_arg, x);
  const std::int64_t samples = rows.per_sample ? x.shape(0) : 1;
  const std::int64_t n = samples ? x.size() / samples : 0;
  for (std::int64_t i = 0; i < samples; ++i) require_inputs(rows.at(i), h.has_value(), z.has_value());
  for (const auto& [name, a] : {std::pair{"x", &x}, {"eps", &eps}}) {
    require_apart("out", out, name, *a);
    if (h) require_apart("h", *h, name, *a);
  }
  for (const auto& [name, a] : {std::pair{"eps_uncond", &eps_uncond}, {"z", &z}}) {
    if (*a) require_apart("out", out, name, **a);
    if (*a && h) require_apart("h", *h, name, **a);
  }
  if (h) require_apart("out", out, "h", *h);
  if (h && h->data() == out.data()) throw py::value_error("h and out must be two arrays: each is written");
  const Isa isa = isa_named(isa_name);

  const auto run = [&](auto element) {
    using T = decltype(element);
    const auto read = [](const std::optional<py::array>& a) { return a ? static_cast<const T*>(a->data()) : nullptr; };
    const StepSpan<T> span{n,
                           static_cast<const T*>(x.data()),
                           static_cast<const T*>(eps.data()),
                           read(eps_uncond),
                           h ? static_cast<T*>(h->mutable_data()) : nullptr,
                           read(z),
                           static_cast<T*>(out.mutable_data())};
    const float* columns = rows.columns.data();
    ReleasedGil nogil;
    fused_steps(columns, rows.per_sample, samples, span, isa);
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

Adaptive adaptive(float guidance_rescale, float threshold_ratio, float largest_threshold) {
  const auto share = [](float value) { return value >= 0 && value <= 1; };
  if (!share(guidance_rescale) || !share(threshold_ratio) || !(largest_threshold >= 1))
    throw py::value_error("guidance_rescale and threshold_ratio must be 0 to 1 and largest_threshold at least 1, got " +
                          std::to_string(guidance_rescale) + ", " + std::to_string(threshold_ratio) + " and " +
                          std::to_string(largest_threshold));
  return {guidance_rescale, threshold_ratio, largest_threshold};
}

FloatArray adapted_row(const FloatArray& columns, const Adaptive& adaptive, const FloatArray& x, const FloatArray& eps,
                       const std::optional<FloatArray>& eps_uncond) {
  if (columns.size() != kStepColumns) throw py::value_error("a row has 16 columns");
  if (x.size() == 0 || eps.size() != x.size() || (eps_uncond && eps_uncond->size() != x.size()))
    throw py::value_error("eps and eps_uncond must have as many elements as x, and at least one");
  std::vector<float> scratch(static_cast<std::size_t>(x.size()));
  return row_to_array(adapted(row_from(columns.data()), adaptive, x.size(), x.data(), eps.data(),
                              eps_uncond ? eps_uncond->data() : nullptr, scratch.data()));
}

}  // namespace

void bind_step(py::module_& m) {
  py::class_<Adaptive>(m, "Adaptive")
      .def(py::init(&adaptive), py::arg("guidance_rescale") = 0.0f, py::arg("threshold_ratio") = 0.0f,
           py::arg("largest_threshold") = std::numeric_limits<float>::infinity());
  m.def("adapted_row", &adapted_row, py::arg("row"), py::arg("adaptive"), py::arg("x"), py::arg("eps"),
        py::arg("eps_uncond") = py::none(), "The row with what it takes from the whole sample folded in.");
  m.def("step", &step, py::arg("x"), py::arg("eps"), py::arg("row"), py::arg("eps_uncond") = py::none(),
        py::arg("h") = py::none(), py::arg("z") = py::none(), py::arg("out") = py::none(), py::arg("isa") = py::none(),
        "The fused step; stepfuse.step documents it.");
}

}  // namespace stepfuse
