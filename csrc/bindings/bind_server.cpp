#include "bound_server.h"
#include "callbacks.h"
#include "counters.h"
#include "stepper_box.h"

namespace stepfuse {

namespace {

// Raises what a signal's handler raises: Ctrl-C ends a wait.
void check_signals() {
  py::gil_scoped_acquire gil;
  if (PyErr_CheckSignals() != 0) throw py::error_already_set();
}

}  // namespace

bool BoundServer::submit(Request& request, std::optional<double> wait) {
  py::gil_scoped_release nogil;
  return server_.submit(request, wait, check_signals);
}

bool BoundServer::submit_all(std::vector<Request> requests) {
  py::gil_scoped_release nogil;
  return server_.submit_all(std::move(requests));
}

void BoundServer::run(py::object forward, py::function on_events) {
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

py::dict BoundServer::status() const {
  // The GIL is released only if the lock is taken: a thread that polls the status would otherwise take it back before a
  // thread that waits for it has woken, again and again.
  std::optional<Status> status = server_.try_status();
  if (!status) {
    py::gil_scoped_release nogil;
    status.emplace(server_.status());
  }
  py::dict found = counters_dict(status->counters);
  found["waiting"] = status->waiting;
  found["running"] = status->running;
  return found;
}

void bind_server(py::module_& m) {
  const auto nogil = py::call_guard<py::gil_scoped_release>();
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
           "Queues a sample; true if run() has to be called. wait: seconds for room, None: however full.")
      .def("submit_all", &BoundServer::submit_all, py::arg("requests"),
           "Queues samples for the same iteration, however full.")
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
