// A server as Python holds it. The GIL is released around everything that may wait for the server's lock.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "../core/loop/server.h"
#include "bindings.h"

namespace stepfuse {

class BoundServer {
 public:
  BoundServer(std::shared_ptr<Stepper> stepper, const LoopOptions& options, std::size_t max_waiting, bool check)
      : spec_(stepper->spec()), server_(std::move(stepper), options, max_waiting, check) {}

  // Throws ValueError if an array has not the size that the server was made for. Times in seconds from now.
  Request request(std::uint64_t id, std::shared_ptr<Table> table, std::uint64_t seed, bool has_noise, FloatArray x,
                  std::optional<FloatArray> x0, std::vector<py::array> cond, std::vector<py::array> null_cond,
                  int priority, std::optional<double> deadline, std::optional<double> timeout, bool watched,
                  std::shared_ptr<Gate> gate, py::object known_region) const;
  bool submit(Request& request, std::optional<double> wait);
  bool submit_all(std::vector<Request> requests);
  // `forward` is a Denoiser, or a function of the number of rows.
  void run(py::object forward, py::function on_events);
  py::dict status() const;

  Server& server() { return server_; }

 private:
  ModelSpec spec_;
  Server server_;
};

}  // namespace stepfuse
