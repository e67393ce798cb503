#include <csignal>
#include <cstdlib>

#include "bound_server.h"
#include "callbacks.h"
#include "counters.h"
#include "process_id.h"
#include "stepper_box.h"

namespace stepfuse {

namespace {

// Raises what a signal's handler raises: Ctrl-C ends a wait.
void check_signals() {
  AcquiredGil gil;
  if (PyErr_CheckSignals() != 0) throw py::error_already_set();
}

}  // namespace

namespace {

// Cancels samples of a server, or closes it, when Python lets go of this: unlike a __del__ in one go, which no signal
// interrupts.
class Lease {
 public:
  Lease(py::object server, std::optional<std::vector<std::uint64_t>> ids)
      : owner_(std::move(server)), server_(owner_.cast<BoundServer&>().server()), ids_(std::move(ids)) {}
  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;
  ~Lease() {
    if (process_id() != process_) return;  // a fork: the lock may be held by a thread that it does not have
    const ReleasedGil nogil;
    ids_ ? server_.cancel(*ids_) : server_.close();
  }

 private:
  py::object owner_;
  Server& server_;
  std::optional<std::vector<std::uint64_t>> ids_;
  int process_ = process_id();
};

}  // namespace

Request BoundServer::take(BoundRequest& request) const {
  if (request.server != identity_) throw py::value_error("a request belongs to the server that made it");
  if (!request.request.table) throw py::value_error("a request needs a table, and is submitted once");
  return std::exchange(request.request, {});
}

bool BoundServer::submit(BoundRequest& request, std::optional<double> wait) {
  if (wait && !(*wait >= 0)) throw py::value_error("wait must be at least 0 seconds, got " + std::to_string(*wait));
  Request taken = take(request);  // another thread may hold the same object
  try {
    const ReleasedGil nogil;
    return server_->submit(taken, wait, check_signals);
  } catch (...) {
    if (taken.table) request.request = std::move(taken);
    throw;
  }
}

bool BoundServer::submit_all(const std::vector<BoundRequest*>& requests) {
  std::vector<Request> taken;
  taken.reserve(requests.size());
  const auto give_back = [&] {
    for (std::size_t i = 0; i < taken.size(); ++i) requests[i]->request = taken[i];
  };
  try {
    for (BoundRequest* one : requests) {
      if (!one) throw py::type_error("requests must be requests, got None");
      taken.push_back(take(*one));
    }
    const ReleasedGil nogil;
    return server_->submit_all(taken);
  } catch (...) {
    give_back();
    throw;
  }
}

namespace {

// Calls `work` without Python's lock with the denoiser that `forward` is.
template <class Work>
void with_denoiser(const py::object& forward, Work work) {
  if (py::isinstance<Denoiser>(forward)) {
    auto& denoiser = forward.cast<Denoiser&>();
    const ReleasedGil nogil;
    return work(denoiser);
  }
  PyDenoiser denoiser(forward.cast<py::function>());
  const ReleasedGil nogil;
  work(denoiser);
}

}  // namespace

void BoundServer::run(const py::object& forward, py::function on_events, py::object on_failure) {
  const bool reported = !on_failure.is_none();
  PyListener listener(std::move(on_events), std::move(on_failure));
  try {
    with_denoiser(forward, [&](Denoiser& denoiser) { server_->run(denoiser, listener); });
  } catch (...) {
    if (!reported) throw;
  }
}

void BoundServer::serve(const py::object& forward, py::function on_events, py::object on_failure, py::object on_idle) {
  PyListener listener(std::move(on_events), std::move(on_failure), std::move(on_idle));
  with_denoiser(forward, [&](Denoiser& denoiser) { server_->serve(denoiser, listener); });
}

bool BoundServer::wait_ended(std::optional<double> seconds) {
  if (seconds && !(*seconds >= 0)) throw py::value_error("seconds must be at least 0, got " + std::to_string(*seconds));
  const ReleasedGil nogil;
  return server_->wait_ended(seconds, check_signals);
}

py::list BoundServer::owners() const {
  std::vector<std::shared_ptr<void>> kept;
  {
    const ReleasedGil nogil;
    kept = server_->owners();
  }
  py::list found;
  for (const auto& one : kept)
    if (one) found.append(static_cast<const KeptAlive*>(one.get())->owner);
  return found;
}

py::dict BoundServer::status() const {
  // The GIL is released only if the lock is taken: a thread that polls the status would otherwise take it back before a
  // thread that waits for it has woken, again and again.
  std::optional<Status> status = server_->try_status();
  if (!status) {
    ReleasedGil nogil;
    status.emplace(server_->status());
  }
  py::dict found = counters_dict(status->counters);
  found["waiting"] = status->waiting;
  found["running"] = status->running;
  found["queue_refusals"] = status->queue_refusals;
  found["deadline_refusals"] = status->deadline_refusals;
  return found;
}

void bind_server(py::module_& m) {
  const auto nogil = py::call_guard<ReleasedGil>();
  py::enum_<Phase>(m, "Phase")
      .value("Open", Phase::Open)
      .value("Draining", Phase::Draining)
      .value("Aborting", Phase::Aborting);
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
           py::arg("adapters") = 0, py::arg("device_copy") = py::none(), py::arg("owner") = py::none(),
           "A request for this server. Times in seconds from now. `owner` stands for it in events.")
      .def("submit", &BoundServer::submit, py::arg("request"), py::arg("wait") = 0.0,
           "Queues a sample; true if run() has to be called. wait: seconds for room, None: however full.")
      .def("submit_all", &BoundServer::submit_all, py::arg("requests"),
           "Queues samples for the same iteration, however full.")
      .def(
          "cancel", [](BoundServer& self, std::uint64_t id) { return self.server().cancel({id}); }, py::arg("id"),
          nogil)
      .def(
          "cancel", [](BoundServer& self, const std::vector<std::uint64_t>& ids) { return self.server().cancel(ids); },
          py::arg("ids"), nogil)
      .def(
          "open", [](BoundServer& self, Gate& gate) { return self.server().open(gate); }, py::arg("gate"), nogil)
      .def(
          "cancel_all", [](BoundServer& self) { return self.server().cancel_all(); }, nogil)
      .def("run", &BoundServer::run, py::arg("forward"), py::arg("on_events"), py::arg("on_failure") = py::none(),
           "Iterations until nothing is left to do; hands each iteration's events to `on_events`, and if that raises, "
           "all"
           " owners and the error to `on_failure`; without one it raises.")
      .def("serve", &BoundServer::serve, py::arg("forward"), py::arg("on_events"), py::arg("on_failure"),
           py::arg("on_idle"), "The same until closed and drained, waiting for requests meanwhile.")
      .def(
          "poke", [](BoundServer& self) { self.server().poke(); }, nogil,
          "Has the thread in serve() call `on_idle` when nothing is left to do.")
      .def_property_readonly("served", [](const BoundServer& self) { return self.server().served(); })
      .def_property_readonly("on_loop_thread", [](const BoundServer& self) { return self.server().on_loop_thread(); })
      .def_property_readonly("phase", [](const BoundServer& self) { return self.server().phase(); })
      .def(
          "close", [](BoundServer& self) { return self.server().close(); }, nogil)
      .def(
          "abort", [](BoundServer& self) { return self.server().abort(); }, nogil)
      .def("wait_ended", &BoundServer::wait_ended, py::arg("seconds") = py::none(),
           "Until closed, drained and left by all threads; False after `seconds`.")
      .def("owners", &BoundServer::owners, "Of the samples whose end `on_events` has not had.")
      .def(
          "set_cost", [](BoundServer& self, const CostCurve& cost) { self.server().set_cost(cost); }, py::arg("cost"),
          nogil)
      .def("status", &BoundServer::status);
  py::class_<Lease>(m, "Lease")
      .def(py::init<py::object, std::optional<std::vector<std::uint64_t>>>(), py::arg("server"),
           py::arg("ids") = py::none(), "Cancels these samples, or closes the server, when it is let go.");
  m.def(
      "end_by_interrupt",
      [] {
        std::atexit([] {
          std::signal(SIGINT, SIG_DFL);
          std::raise(SIGINT);
        });
      },
      "Has the process end by SIGINT when the interpreter has, as one does that Ctrl-C has stopped.");
}

}  // namespace stepfuse
