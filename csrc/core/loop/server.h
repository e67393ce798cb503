// The loop for many threads: any of them submits, cancels and opens gates; one at a time runs it.
//
// The lock covers the loop's bookkeeping and the fused step, never the network and never the listener. The server has
// no thread of its own: its calls return whether run() has to be called, and run() returns when nothing is left to do.
#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <vector>

#include "loop.h"

namespace stepfuse {

// Thrown by submit if as many requests wait as may.
struct QueueFull : std::runtime_error {
  explicit QueueFull(std::size_t depth);
};

// Thrown by a submission after close.
struct EngineClosed : std::runtime_error {
  EngineClosed();
};

class Listener {
 public:
  virtual ~Listener() = default;
  // Called by the thread in run(), without the lock, after each iteration that had events. When it returns the events
  // are destroyed, and with them what kept their samples' memory alive.
  virtual void on_events(const std::vector<Event>& events) = 0;
};

struct Status {
  Counters counters;
  std::size_t waiting;  // samples in the queue
  std::size_t running;  // samples that have begun
};

class Server {
 public:
  // Throws std::invalid_argument if max_waiting or options.max_running is below 1. In a debug build the invariants are
  // checked after each iteration, in others if `check_invariants`.
  Server(std::shared_ptr<Stepper> stepper, const LoopOptions& options, std::size_t max_waiting, bool check_invariants);

  // submit, submit_all, cancel, open and cancel_all return true if no thread is in run(): then the caller has to have
  // it called. One call too many does no harm, as a second run() returns at once.
  //
  // Waits up to wait_seconds for room in the queue; null: queues the request however full the queue is. While it waits
  // it calls `check_interrupt`, if given, every kInterruptSeconds, without the lock; what that throws ends the wait.
  // Throws QueueFull if there was no room, EngineClosed after close, DeadlineError if the deadline cannot be met, and
  // std::invalid_argument if Loop::check does. The request is moved from unless QueueFull
  // or EngineClosed is thrown.
  bool submit(Request& request, std::optional<double> wait_seconds, const std::function<void()>& check_interrupt = {});
  // Queues all of them for the same iteration, however full the queue is, or none. Throws EngineClosed after close, and
  // std::invalid_argument if Loop::check does, two have the same id, or one has a deadline.
  bool submit_all(std::vector<Request> requests);
  bool cancel(std::uint64_t id);
  bool open(Gate& gate);
  bool cancel_all();

  // Runs iterations until nothing is left to do; returns at once if another thread is in it. Throws what the listener
  // throws, and std::logic_error if an invariant is violated: then every sample has been cancelled, without an event.
  void run(Denoiser& denoiser, Listener& listener);

  void close();  // refuses further requests; those queued are still computed
  void set_cost(const CostCurve& cost);
  Status status() const;
  std::optional<Status> try_status() const;  // null if the lock is taken
  static double now();                       // seconds on the monotonic clock

  static constexpr double kInterruptSeconds = 0.05;

 private:
  // Whether there was room in the queue, or the server was closed, in time.
  bool wait_for_room(std::unique_lock<std::mutex>& lock, double seconds, const std::function<void()>& check_interrupt);
  void run_iteration(Denoiser& denoiser, std::unique_lock<std::mutex>& lock);
  void deliver(Listener& listener, std::unique_lock<std::mutex>& lock);

  mutable std::mutex mutex_;
  std::condition_variable room_;  // in the queue, or closed
  Loop loop_;
  std::vector<Event> delivered_;  // of the thread in run()
  const std::size_t max_waiting_;
  const bool check_invariants_;
  bool running_ = false;  // whether a thread is in run()
  bool closed_ = false;
};

}  // namespace stepfuse
