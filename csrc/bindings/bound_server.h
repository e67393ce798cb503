// A server as Python holds it. The GIL is released around everything that may wait for the server's lock.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "../core/loop/server.h"
#include "bindings.h"

namespace stepfuse {

// A request as Python holds it until the server that it was made for takes it.
struct BoundRequest {
  Request request;
  std::shared_ptr<const void> server;  // which one; another's rows and arrays may have other sizes
};

class BoundServer {
 public:
  BoundServer(std::shared_ptr<Stepper> stepper, const LoopOptions& options, std::size_t max_waiting, bool check)
      : spec_(stepper->spec()),
        server_(std::make_unique<Server>(std::move(stepper), options, max_waiting, check)),
        identity_(std::make_shared<int>()) {}
  BoundServer(const BoundServer&) = delete;
  BoundServer& operator=(const BoundServer&) = delete;
  // A thread that is in it, if only in the process that this one was forked from, would be waited for.
  ~BoundServer() {
    if (server_->served()) static_cast<void>(server_.release());
  }

  // Throws ValueError if an array has not the size that the server was made for. Times in seconds from now.
  BoundRequest request(std::uint64_t id, std::shared_ptr<Table> table, std::uint64_t seed, bool has_noise, FloatArray x,
                       std::optional<FloatArray> x0, std::vector<py::array> cond, std::vector<py::array> null_cond,
                       int priority, std::optional<double> deadline, std::optional<double> timeout, bool watched,
                       std::shared_ptr<Gate> gate, py::object known_region, std::uint64_t adapters,
                       py::object device_copy, py::object owner) const;
  // These take what they are given, unless they throw. Throw ValueError if it was made for another server, or is taken.
  bool submit(BoundRequest& request, std::optional<double> wait);
  bool submit_all(const std::vector<BoundRequest*>& requests);
  // `forward` is a Denoiser, or a function of the number of rows, and of the set of adapters where there is one.
  void run(const py::object& forward, py::function on_events, py::object on_failure);
  void serve(const py::object& forward, py::function on_events, py::object on_failure, py::object on_idle);
  bool wait_ended(std::optional<double> seconds);
  py::list owners() const;
  py::dict status() const;

  Server& server() { return *server_; }
  const Server& server() const { return *server_; }

 private:
  Request take(BoundRequest& request) const;

  ModelSpec spec_;
  std::unique_ptr<Server> server_;
  std::shared_ptr<const void> identity_;
};

}  // namespace stepfuse
