// Python functions that the loop calls: the network's forward and the listener.
#pragma once

#include <utility>
#include <vector>

#include "../core/loop/server.h"
#include "bindings.h"

namespace stepfuse {

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

// Passes an iteration's events to Python as tuples (kind, id, step, error, wait_seconds, run_seconds). The error of a
// failure is the exception that the network raised, or the row whose step was not finite.
class PyListener final : public Listener {
 public:
  explicit PyListener(py::function on_events) : on_events_(std::move(on_events)) {}
  void on_events(const std::vector<Event>& events) override;

 private:
  py::function on_events_;
};

}  // namespace stepfuse
