#include <algorithm>
#include <exception>

#include "../core/loop/server.h"
#include "bindings.h"
#include "counters.h"
#include "stepper_box.h"

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

// Hands an iteration's events to Python as tuples (kind, id, step, error, wait_seconds, run_seconds). The error of a
// failure is the exception that the network raised, or the row whose step was not finite.
class PyListener final : public Listener {
 public:
  explicit PyListener(py::function on_events) : on_events_(std::move(on_events)) {}
  void on_events(const std::vector<Event>& events) override {
    py::gil_scoped_acquire gil;
    py::list found;
    for (const Event& event : events)
      found.append(
          py::make_tuple(event.kind, event.id, event.step, cause(event), event.wait_seconds, event.run_seconds));
    on_events_(found);
  }

 private:
  static py::object cause(const Event& event) {
    if (!event.error) return event.kind == EventKind::Failed ? py::object(row_to_array(event.row)) : py::none();
    try {
      std::rethrow_exception(event.error);
    } catch (const py::error_already_set& raised) {
      return raised.value();
    } catch (...) {
      return in_python();
    }
  }

  // The exception that is being handled, as what a bound function would raise.
  static py::object in_python() {
    try {
      py::cpp_function([] { throw; })();
    } catch (const py::error_already_set& raised) {
      return raised.value();
    }
    return py::none();
  }

  py::function on_events_;
};

// What is known of a sample, with the arrays that it points into.
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

double absolute(std::optional<double> seconds_from_now) {
  return seconds_from_now ? Server::now() + *seconds_from_now : kNever;
}

class BoundServer {
 public:
  BoundServer(std::shared_ptr<Stepper> stepper, const LoopOptions& options, std::size_t max_waiting, bool check)
      : spec_(stepper->spec()), server_(std::move(stepper), options, max_waiting, check) {}

  bool submit(Request& request, std::optional<double> wait) {
    const double until = absolute(wait);
    while (true) {
      try {
        const double slice = std::max(std::min(until - Server::now(), kSignalSeconds), 0.0);
        py::gil_scoped_release nogil;
        return server_.submit(request, wait ? std::optional(slice) : std::nullopt);
      } catch (const QueueFull&) {
        if (Server::now() >= until) throw;
        if (PyErr_CheckSignals() != 0) throw py::error_already_set();  // Ctrl-C ends the wait
      }
    }
  }

  bool submit_all(std::vector<Request> requests) {
    py::gil_scoped_release nogil;
    return server_.submit_all(std::move(requests));
  }

  // A request whose sizes have been checked.
  Request request(std::uint64_t id, std::shared_ptr<Table> table, std::uint64_t seed, bool has_noise, FloatArray x,
                  std::optional<FloatArray> x0, std::vector<py::array> cond, std::vector<py::array> null_cond,
                  int priority, std::optional<double> deadline, std::optional<double> timeout, bool watched,
                  std::shared_ptr<Gate> gate, py::object known_region) const {
    const std::size_t state_bytes = static_cast<std::size_t>(spec_.elements) * sizeof(float);
    require_bytes("x", x, state_bytes);
    if (x0) require_bytes("x0", *x0, state_bytes);
    return {id,
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
            known_region.is_none() ? nullptr : known_region_of(known_region),
            keep_alive(py::make_tuple(x, x0, cond, null_cond, known_region))};
  }

  // `forward` is a Denoiser, or a function of the number of rows.
  void run(py::object forward, py::function on_events) {
    PyListener listener(std::move(on_events));
    if (py::isinstance<Denoiser>(forward)) {
      auto& denoiser = forward.cast<Denoiser&>();
      py::gil_scoped_release nogil;
      return server_.run(denoiser, listener);
    }
    PyDenoiser denoiser(forward.cast<py::function>());
    py::gil_scoped_release nogil;
    server_.run(denoiser, listener);
  }

  py::dict status() const {
    // Python's lock is let go only if there is something to wait for: one who asks often would otherwise take it back
    // before anybody who waits for it has woken, again and again.
    std::optional<Status> now = server_.status_now();
    if (!now) {
      py::gil_scoped_release nogil;
      now.emplace(server_.status());
    }
    const Status& status = *now;
    py::dict found = counters_dict(status.counters);
    found["waiting"] = status.waiting;
    found["running"] = status.running;
    return found;
  }

  Server& server() { return server_; }

 private:
  static constexpr double kSignalSeconds = 0.05;

  std::shared_ptr<const KnownRegion> known_region_of(const py::object& given) const {
    const auto& arrays = given.cast<const KnownRegionArrays&>();
    const std::size_t state_bytes = static_cast<std::size_t>(spec_.elements) * sizeof(float);
    require_bytes("image", arrays.image, state_bytes);
    if (arrays.mask) require_bytes("mask", *arrays.mask, state_bytes);
    return arrays.known;
  }

  ModelSpec spec_;
  Server server_;
};

std::shared_ptr<Table> table_from(const FloatArray& rows, float init_scale, const Adaptive& adaptive) {
  if (rows.ndim() != 2 || rows.shape(1) != kStepColumns) throw py::value_error("a table has shape (S, 16)");
  std::vector<StepRow> steps;
  for (py::ssize_t i = 0; i < rows.shape(0); ++i) steps.push_back(row_from(rows.data(i)));
  return std::make_shared<Table>(std::move(steps), init_scale, adaptive);
}

}  // namespace

void bind_loop(py::module_& m) {
  const auto nogil = py::call_guard<py::gil_scoped_release>();
  py::class_<Table, std::shared_ptr<Table>>(m, "Table")
      .def(py::init(&table_from), py::arg("rows"), py::arg("init_scale"), py::arg("adaptive") = Adaptive{});
  py::enum_<EventKind>(m, "EventKind")
      .value("Stepped", EventKind::Stepped)
      .value("Finished", EventKind::Finished)
      .value("Failed", EventKind::Failed)
      .value("Cancelled", EventKind::Cancelled)
      .value("Expired", EventKind::Expired)
      .value("Retried", EventKind::Retried);

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
  py::class_<Request>(m, "Request");
  py::class_<Gate, std::shared_ptr<Gate>>(m, "Gate").def(py::init());
  py::class_<BoundServer>(m, "Server")
      .def(py::init([](StepperBox& box, const LoopOptions& options, std::size_t max_waiting, bool check) {
             return std::make_unique<BoundServer>(box.take(), options, max_waiting, check);
           }),
           py::arg("stepper"), py::arg("options"), py::arg("max_waiting"), py::arg("check") = false,
           py::keep_alive<1, 2>())
      .def("request", &BoundServer::request, py::arg("id"), py::arg("table"), py::arg("seed"), py::arg("has_noise"),
           py::arg("x").noconvert(), py::arg("x0").noconvert(), py::arg("cond"), py::arg("null_cond"), py::kw_only(),
           py::arg("priority") = 0, py::arg("deadline") = py::none(), py::arg("timeout") = py::none(),
           py::arg("watched") = false, py::arg("gate") = std::shared_ptr<Gate>(), py::arg("known_region") = py::none(),
           "A request for this server. Times in seconds from now.")
      .def("submit", &BoundServer::submit, py::arg("request"), py::arg("wait") = 0.0,
           "Queues a sample; true if run() is to be called. wait: seconds for room, None: however full.")
      .def("submit_all", &BoundServer::submit_all, py::arg("requests"),
           "Queues samples in one iteration, however full.")
      .def(
          "cancel", [](BoundServer& self, std::uint64_t id) { return self.server().cancel(id); }, py::arg("id"), nogil)
      .def(
          "open", [](BoundServer& self, Gate& gate) { return self.server().open(gate); }, py::arg("gate"), nogil)
      .def(
          "cancel_all", [](BoundServer& self) { return self.server().cancel_all(); }, nogil)
      .def("run", &BoundServer::run, py::arg("forward"), py::arg("on_events"),
           "Iterations until nothing is left to do; hands each iteration's events to `on_events`.")
      .def(
          "close", [](BoundServer& self) { self.server().close(); }, nogil)
      .def(
          "set_cost", [](BoundServer& self, const CostCurve& cost) { self.server().set_cost(cost); }, py::arg("cost"),
          nogil)
      .def("status", &BoundServer::status);
}

}  // namespace stepfuse
