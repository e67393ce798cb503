#include "server.h"

#ifdef __GLIBCXX__
#include <cxxabi.h>
#endif

#include <algorithm>
#include <chrono>
#include <set>
#include <string>
#include <utility>

#include "invariants.h"

namespace stepfuse {

namespace {
#ifdef NDEBUG
constexpr bool kDebugBuild = false;
#else
constexpr bool kDebugBuild = true;
#endif
}  // namespace

QueueFull::QueueFull(std::size_t depth)
    : std::runtime_error("the queue is full: " + std::to_string(depth) +
                         " requests wait; try again later, or give submit a time to wait for room") {}

EngineClosed::EngineClosed() : std::runtime_error("the engine is closed") {}

double Server::now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

Server::Server(std::shared_ptr<Stepper> stepper, const LoopOptions& options, std::size_t max_waiting,
               bool check_invariants)
    : loop_(std::move(stepper), options),
      max_waiting_(max_waiting),
      check_invariants_(check_invariants || kDebugBuild) {
  if (max_waiting < 1) throw std::invalid_argument("the queue must hold at least 1 request");
}

bool Server::submit(Request& request, std::optional<double> wait_seconds,
                    const std::function<void()>& check_interrupt) {
  const std::shared_ptr<void> owner = request.keep_alive;  // of a refused request: not to be released under the lock
  std::unique_lock<std::mutex> lock(mutex_);
  if (wait_seconds && !wait_for_room(lock, *wait_seconds, check_interrupt)) throw QueueFull(loop_.waiting().size());
  if (closed_) throw EngineClosed();
  loop_.submit(std::move(request), now());
  return !running_;
}

bool Server::wait_for_room(std::unique_lock<std::mutex>& lock, double seconds,
                           const std::function<void()>& check_interrupt) {
  constexpr double kLongest = 1e6;  // seconds: longer waits overflow the clock
  const auto has_room = [this] { return closed_ || loop_.waiting().size() < max_waiting_; };
  const double end = now() + seconds, slice = check_interrupt ? kInterruptSeconds : kLongest;
  while (!room_.wait_for(lock, std::chrono::duration<double>(std::clamp(end - now(), 0.0, slice)), has_room)) {
    if (now() >= end) return false;
    if (!check_interrupt) continue;
    lock.unlock();
    check_interrupt();
    lock.lock();
  }
  return true;
}

bool Server::submit_all(std::vector<Request> requests) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (closed_) throw EngineClosed();
  std::set<std::uint64_t> ids;
  for (const Request& request : requests) {
    loop_.check(request);
    if (!ids.insert(request.id).second) throw std::invalid_argument("an id occurs twice among the requests");
    if (request.deadline != kNever) throw std::invalid_argument("requests submitted together must have no deadline");
  }
  const double time = now();
  for (Request& request : requests) loop_.submit(std::move(request), time);
  return !running_;
}

bool Server::cancel(std::uint64_t id) {
  std::lock_guard<std::mutex> lock(mutex_);
  return loop_.cancel(id) && !running_;
}

bool Server::open(Gate& gate) {
  std::lock_guard<std::mutex> lock(mutex_);
  loop_.open(gate);
  return !running_;
}

bool Server::cancel_all() {
  std::lock_guard<std::mutex> lock(mutex_);
  loop_.cancel_all();
  return !running_;
}

void Server::run(Denoiser& denoiser, Listener& listener) {
  std::unique_lock<std::mutex> lock(mutex_);
  if (std::exchange(running_, true)) return;
  try {
    while (true) {
      const bool busy = loop_.prepare(now());
      if (busy) run_iteration(denoiser, lock);
      if (!busy && loop_.events().empty()) break;
      room_.notify_all();
      deliver(listener, lock);
      if (!check_invariants_) continue;
      const auto found = violations(loop_);
      if (!found.empty()) throw std::logic_error("loop invariant broken: " + found.front());
    }
  } catch (...) {
    if (!lock.owns_lock()) lock.lock();
    loop_.cancel_all();
    loop_.prepare(now());
    // Taken, not cleared: as soon as the lock is free another thread may be in run(), and these are its own then.
    const std::vector<Event> delivered = std::exchange(delivered_, {}), undelivered = std::exchange(loop_.events(), {});
    running_ = false;
    room_.notify_all();
    lock.unlock();
    throw;
  }
  running_ = false;
}

namespace {

// What `work` throws, except the exception that ends a thread, as Python does at shutdown: that one passes through.
template <class Work>
std::exception_ptr error_of(Work work) {
  try {
    work();
#ifdef __GLIBCXX__
  } catch (const abi::__forced_unwind&) {
    throw;
#endif
  } catch (...) {
    return std::current_exception();
  }
  return nullptr;
}

}  // namespace

void Server::run_iteration(Denoiser& denoiser, std::unique_lock<std::mutex>& lock) {
  const int rows = loop_.forward_rows();
  int padding = 0;
  lock.unlock();
  std::exception_ptr error = error_of([&] {
    loop_.stepper().throttle();
    denoiser.forward(rows);
    padding = denoiser.computed(rows) - rows;
  });
  lock.lock();
  loop_.count_padding(padding);
  if (error) return loop_.fail(std::move(error), now());
  if (!loop_.step(now())) return;
  if (loop_.stepper().needs_host_sync()) {
    lock.unlock();
    error = error_of([&] { loop_.stepper().synchronize(); });
    lock.lock();
  }
  loop_.commit(std::move(error), now());
}

void Server::deliver(Listener& listener, std::unique_lock<std::mutex>& lock) {
  if (loop_.events().empty()) return;
  std::swap(delivered_, loop_.events());
  lock.unlock();
  const double began = now();
  listener.on_events(delivered_);
  delivered_.clear();  // releases the samples' memory, which may need Python's lock: not under the server's
  const double seconds = now() - began;
  lock.lock();
  loop_.count_callbacks(seconds);
}

void Server::close() {
  std::lock_guard<std::mutex> lock(mutex_);
  closed_ = true;
  room_.notify_all();
}

void Server::set_cost(const CostCurve& cost) {
  std::lock_guard<std::mutex> lock(mutex_);
  loop_.set_cost(cost);
}

std::optional<Status> Server::try_status() const {
  const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
  if (!lock) return std::nullopt;
  return Status{loop_.counters(), loop_.waiting().size(), loop_.running().size()};
}

Status Server::status() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return {loop_.counters(), loop_.waiting().size(), loop_.running().size()};
}

}  // namespace stepfuse
