// The loop as many threads see it: they submit, cancel and open gates; one of them drives.
//
// The lock covers the loop's bookkeeping and the fused step, never the network and never the listener. There is no
// thread in here: whoever is told so by one of these calls run(), which returns when nothing is left.
#pragma once

#include <condition_variable>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <vector>

#include "loop.h"

namespace stepfuse {

struct QueueFull : std::runtime_error {
  explicit QueueFull(std::size_t depth);
};

struct EngineClosed : std::runtime_error {
  EngineClosed();
};

class Listener {
 public:
  virtual ~Listener() = default;
  // Called by the driving thread, without the lock, after each iteration in which something happened. The events, and
  // with them what kept their samples' memory alive, are gone when it returns.
  virtual void on_events(const std::vector<Event>& events) = 0;
};

struct Status {
  Counters counters;
  std::size_t waiting;
  std::size_t running;
};

class Server {
 public:
  Server(std::shared_ptr<Stepper> stepper, const LoopOptions& options, std::size_t max_waiting, bool check_invariants);

  // Each returns true if nobody runs: then the caller has to see to it that run() is called. Being told once too often
  // does no harm, as a second run() returns at once.
  //
  // Waits so long for room in the queue; null: queues it however full. Throws QueueFull, EngineClosed, DeadlineError,
  // or std::invalid_argument. The request is moved from unless QueueFull is thrown.
  bool submit(Request& request, std::optional<double> wait_seconds);
  // All in one iteration, however full the queue is; they have no deadlines. If one is refused, none is queued.
  bool submit_all(std::vector<Request> requests);
  bool cancel(std::uint64_t id);
  bool open(Gate& gate);
  bool cancel_all();

  // Iterations until nothing is left to do; returns at once if somebody else is in it. Throws what the listener throws,
  // and std::logic_error if an invariant breaks: then every sample has been cancelled.
  void run(Denoiser& denoiser, Listener& listener);

  void close();  // what waits is still drawn, nothing more is taken
  void set_cost(const CostCurve& cost);
  Status status() const;
  std::optional<Status> status_now() const;  // null if that would have to wait
  static double now();                       // seconds on the monotonic clock

 private:
  void iteration(Denoiser& denoiser, std::unique_lock<std::mutex>& lock);
  void deliver(Listener& listener, std::unique_lock<std::mutex>& lock);

  mutable std::mutex mutex_;
  std::condition_variable room_;
  Loop loop_;
  std::vector<Event> delivered_;  // of the driving thread
  const std::size_t max_waiting_;
  const bool check_invariants_;
  bool running_ = false;  // somebody is in run()
  bool closed_ = false;
};

}  // namespace stepfuse
