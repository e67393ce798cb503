#include <mutex>

#include "../core/invariants.h"
#include "../core/loop.h"
#include "bindings.h"

namespace stepfuse {

namespace {

class PyDenoiser final : public Denoiser {
 public:
  explicit PyDenoiser(py::function forward) : forward_(std::move(forward)) {}
  void forward(int rows) override {
    py::gil_scoped_acquire gil;
    forward_(rows);
  }

 private:
  py::function forward_;
};

// The loop reads and writes through bare pointers: a wrong size must not get that far.
void require_bytes(const char* name, const py::array& array, std::size_t expected) {
  if (!(array.flags() & py::array::c_style)) throw py::value_error(std::string(name) + " must be C-contiguous");
  if (static_cast<std::size_t>(array.nbytes()) != expected)
    throw py::value_error(std::string(name) + " must have " + std::to_string(expected) + " bytes, got " +
                          std::to_string(array.nbytes()));
}

// Python objects that a request borrows from; the loop may drop it without the GIL.
std::shared_ptr<void> keep_alive(py::tuple owners) {
  return {new py::tuple(std::move(owners)), [](void* held) {
            py::gil_scoped_acquire gil;
            delete static_cast<py::tuple*>(held);
          }};
}

std::vector<const void*> pointers(const char* name, const std::vector<py::array>& values, const ModelSpec& spec) {
  std::vector<const void*> found;
  for (const py::array& value : values) {
    if (found.size() < spec.cond_bytes.size()) require_bytes(name, value, spec.cond_bytes[found.size()]);
    found.push_back(value.data());
  }
  return found;
}

class BoundLoop {
 public:
  explicit BoundLoop(const ModelSpec& spec) : loop_(spec) {}

  void submit(std::uint64_t id, std::shared_ptr<Table> table, std::uint64_t seed, bool has_noise, FloatArray x,
              std::optional<FloatArray> x0, std::vector<py::array> cond, std::vector<py::array> null_cond) {
    const ModelSpec& spec = loop_.spec();
    const std::size_t state_bytes = static_cast<std::size_t>(spec.elements) * sizeof(float);
    require_bytes("x", x, state_bytes);
    if (x0) require_bytes("x0", *x0, state_bytes);
    Request request{id,
                    std::move(table),
                    seed,
                    has_noise,
                    x.mutable_data(),
                    x0 ? x0->mutable_data() : nullptr,
                    pointers("cond", cond, spec),
                    pointers("null_cond", null_cond, spec),
                    keep_alive(py::make_tuple(x, x0, cond, null_cond))};
    loop_.submit(std::move(request));
  }

  // Turns until nothing is left, a sample fails, or `on_turn` says false.
  std::vector<py::tuple> run(py::function forward, std::optional<py::function> on_turn, bool check) {
    PyDenoiser denoiser(std::move(forward));
    py::gil_scoped_release nogil;
    std::vector<Failure> failures;
    while (failures.empty() && loop_.turn(denoiser)) {
      failures = loop_.take_failures();
      publish_counters();
      if (check) require_invariants();
      if (!on_turn) continue;
      py::gil_scoped_acquire gil;
      if (!(*on_turn)().cast<bool>()) break;
    }
    py::gil_scoped_acquire gil;
    std::vector<py::tuple> found;
    for (const Failure& failure : failures)
      found.push_back(py::make_tuple(failure.id, failure.step, row_to_array(failure.row)));
    return found;
  }

  void abort() { loop_.abort(); }

  // Of the last finished turn; any thread may ask while another one runs.
  py::dict counters() {
    const Counters c = [this] {
      std::lock_guard<std::mutex> lock(counters_mutex_);
      return counters_;
    }();
    py::dict found;
    found["samples"] = c.samples;
    found["failures"] = c.failures;
    found["steps"] = c.steps;
    found["forwards"] = c.forwards;
    found["network_passes"] = c.network_passes;
    found["network_seconds"] = c.network_seconds;
    found["step_seconds"] = c.step_seconds;
    found["loop_seconds"] = c.loop_seconds;
    return found;
  }

  ForwardBuffers& buffers() { return loop_.buffers(); }

 private:
  void publish_counters() {
    std::lock_guard<std::mutex> lock(counters_mutex_);
    counters_ = loop_.counters();
  }

  void require_invariants() const {
    const auto found = violations(loop_);
    if (!found.empty()) throw std::logic_error("loop invariant broken: " + found.front());
  }

  Loop loop_;
  std::mutex counters_mutex_;
  Counters counters_;
};

template <class T>
py::array view(AlignedBuffer& buffer, int rows, py::handle owner) {
  const auto columns = static_cast<py::ssize_t>(buffer.bytes() / sizeof(T)) / rows;
  return py::array_t<T>({static_cast<py::ssize_t>(rows), columns}, static_cast<const T*>(buffer.data()), owner);
}

py::dict buffer_views(py::object self) {
  ForwardBuffers& b = self.cast<BoundLoop&>().buffers();
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

std::shared_ptr<Table> table_from(const FloatArray& rows, float init_scale) {
  if (rows.ndim() != 2 || rows.shape(1) != kStepColumns) throw py::value_error("a table has shape (S, 16)");
  std::vector<StepRow> steps;
  for (py::ssize_t i = 0; i < rows.shape(0); ++i) steps.push_back(row_from(rows.data(i)));
  return std::make_shared<Table>(std::move(steps), init_scale);
}

}  // namespace

void bind_loop(py::module_& m) {
  py::class_<Table, std::shared_ptr<Table>>(m, "Table")
      .def(py::init(&table_from), py::arg("rows"), py::arg("init_scale"));
  py::class_<BoundLoop>(m, "Loop")
      .def(
          py::init([](std::int64_t elements, bool integer_timestep, std::vector<std::size_t> cond_bytes, int max_rows) {
            const auto timestep = integer_timestep ? TimestepType::Int64 : TimestepType::Float32;
            return std::make_unique<BoundLoop>(ModelSpec{elements, timestep, std::move(cond_bytes), max_rows});
          }),
          py::arg("elements"), py::arg("integer_timestep"), py::arg("cond_bytes"), py::arg("max_rows"))
      .def("buffers", &buffer_views, "Views of the shared input and output memory, a row a sample.")
      .def("submit", &BoundLoop::submit, py::arg("id"), py::arg("table"), py::arg("seed"), py::arg("has_noise"),
           py::arg("x").noconvert(), py::arg("x0").noconvert(), py::arg("cond"), py::arg("null_cond"))
      .def("run", &BoundLoop::run, py::arg("forward"), py::arg("on_turn") = py::none(), py::arg("check") = false,
           "Runs all submitted samples; returns (id, step, row) of those that went non-finite.")
      .def("abort", &BoundLoop::abort, "Forgets all samples.")
      .def("counters", &BoundLoop::counters);
}

}  // namespace stepfuse
