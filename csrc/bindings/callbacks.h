// Python functions that the loop calls: the network's forward and the listener.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "../core/loop/server.h"
#include "bindings.h"

namespace stepfuse {

// What a request keeps alive: the arrays that it borrows from, and the object that its events are reported for.
struct KeptAlive {
  py::tuple arrays;
  py::object owner;  // None: events name the request's id
};

// Shared by threads that may release it without Python's lock.
std::shared_ptr<void> keep_alive(py::tuple arrays, py::object owner);

class PyDenoiser final : public Denoiser {
 public:
  explicit PyDenoiser(py::function forward) : forward_(std::move(forward)) {}
  void forward(int rows, std::uint64_t adapters) override {
    const AcquiredGil gil;
    adapters == 0 ? call_python(forward_, rows) : call_python(forward_, rows, adapters);
  }

 private:
  py::function forward_;
};

// Passes an iteration's events to Python as tuples (kind, owner or id, step, error, wait_seconds, run_seconds). The
// error of a failure is the exception that the network raised, or the row whose step was not finite.
class PyListener final : public Listener {
 public:
  explicit PyListener(py::object on_events, py::object on_failure = py::none(), py::object on_idle = py::none())
      : on_events_(std::move(on_events)), on_failure_(std::move(on_failure)), on_idle_(std::move(on_idle)) {}
  void on_events(std::vector<Event>& events) override;
  void on_failure(const std::vector<Event>& events, const std::exception_ptr& error) override;
  void on_idle() override;

 private:
  py::object on_events_, on_failure_, on_idle_;
};

}  // namespace stepfuse
