// The loop for many threads: any of them submits, cancels and opens gates; one at a time runs it.
//
// The lock covers the loop's bookkeeping and the fused step, never the network and never the listener. The server has
// no thread of its own. Either one stays in serve(), or calls return that run() has to be called, which returns when
// nothing is left to do.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <thread>
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
  // are destroyed, if it has not done so, and with them what kept their samples' memory alive.
  virtual void on_events(std::vector<Event>& events) = 0;
  // Called, without the lock, when on_events or an invariant has failed. `events` holds the end of every sample there
  // was; those whose end on_events had before it threw are among them.
  virtual void on_failure(const std::vector<Event>&, const std::exception_ptr&) {}
  // Called after poke, without the lock, when nothing is left to do.
  virtual void on_idle() {}
};

// How far a server has come: it goes on to a later phase, never back.
enum class Phase : std::uint8_t {
  Open,      // takes requests
  Draining,  // refuses requests, computes those it has
  Aborting,  // refuses requests, withdraws those it has between two iterations
};

struct Status {
  Counters counters;
  std::size_t waiting;              // samples in the queue
  std::size_t running;              // samples that have begun
  std::uint64_t queue_refusals;     // submissions that threw QueueFull
  std::uint64_t deadline_refusals;  // submissions that threw DeadlineError
};

class Server {
 public:
  // Throws std::invalid_argument if max_waiting or options.max_running is below 1. In a debug build the invariants are
  // checked after each iteration, in others if `check_invariants`.
  Server(std::shared_ptr<Stepper> stepper, const LoopOptions& options, std::size_t max_waiting, bool check_invariants);

  // submit, submit_all, cancel, open, cancel_all, close and abort return true if no thread is in run() or serve(): then
  // the caller has to have run() called. One call too many does no harm, as a second run() returns at once.
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
  bool cancel(const std::vector<std::uint64_t>& ids);
  bool open(Gate& gate);
  bool cancel_all();

  // Runs iterations until nothing is left to do; returns at once if another thread is in run() or serve(). Throws what
  // the listener throws, and std::logic_error if an invariant is violated: then every sample has been cancelled and
  // handed to on_failure.
  void run(Denoiser& denoiser, Listener& listener);
  // The same for a thread that stays: waits for requests until the server is closed and has none left. What run()
  // throws ends nothing. Returns at once if another thread is in run() or serve().
  void serve(Denoiser& denoiser, Listener& listener);
  void poke();                  // has the thread in serve() call on_idle
  bool served() const;          // whether a thread is in serve()
  bool on_loop_thread() const;  // whether the calling thread is the one in run() or serve()

  bool close();  // Draining
  bool abort();  // Aborting
  Phase phase() const { return phase_; }
  // Waits until the server is closed, has no samples left, and no thread is in run() or serve(): false if that takes
  // longer than `seconds`; null: as long as it takes. `check_interrupt` as in submit. Throws
  // std::logic_error if called by the network or the listener.
  bool wait_ended(std::optional<double> seconds, const std::function<void()>& check_interrupt = {});
  // What keeps the samples alive whose end on_events has not been given yet.
  std::vector<std::shared_ptr<void>> owners() const;

  void set_cost(const CostCurve& cost);
  Status status() const;
  std::optional<Status> try_status() const;  // null if the lock is taken
  static double now();                       // seconds on the monotonic clock

  static constexpr double kInterruptSeconds = 0.05;

 private:
  class Runner;  // marks that a thread is in run() or serve()

  // Waits without the lock for `condition`, at most `seconds`; false if it did not come about.
  template <class Condition>
  bool wait(std::unique_lock<std::mutex>& lock, std::condition_variable& changed, double seconds,
            const std::function<void()>& check_interrupt, Condition condition);
  bool has_samples() const;
  bool has_ended() const { return phase_ != Phase::Open && !running_ && !has_samples(); }
  bool changed();  // something has: wakes the thread in serve(); true if no thread is there
  bool advance(Phase phase);
  Status status_now() const;
  // Returns what the listener or an invariant has thrown, after it has been reported; null: nothing is left to do.
  std::exception_ptr run_until_idle(Denoiser& denoiser, Listener& listener, std::unique_lock<std::mutex>& lock);
  static void drop(std::exception_ptr& error, std::unique_lock<std::mutex>& lock);
  void run_iteration(Denoiser& denoiser, std::unique_lock<std::mutex>& lock);
  void deliver(Listener& listener, std::unique_lock<std::mutex>& lock);

  mutable std::mutex mutex_;
  std::condition_variable room_;   // in the queue, or closed
  std::condition_variable work_;   // for the thread in serve()
  std::condition_variable ended_;  // has_ended() may have become true
  Loop loop_;
  std::vector<Event> delivered_;  // of the thread in run()
  const std::size_t max_waiting_;
  const bool check_invariants_;
  bool running_ = false;  // whether a thread is in run() or serve()
  bool changed_ = false;  // since run() has found nothing to do
  std::uint64_t queue_refusals_ = 0, deadline_refusals_ = 0;
  bool poked_ = false;                 // on_idle has to be called
  std::atomic<bool> served_{false};    // whether `running_` is by serve()
  std::atomic<std::thread::id> by_{};  // the thread in run() or serve()
  std::atomic<Phase> phase_{Phase::Open};
};

}  // namespace stepfuse
