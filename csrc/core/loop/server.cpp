#include "server.h"

#ifdef __GLIBCXX__
#include <cxxabi.h>
#endif

#include <algorithm>
#include <chrono>
#include <iterator>
#include <limits>
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
  const auto has_room = [this] { return phase_ != Phase::Open || loop_.waiting().size() < max_waiting_; };
  if (wait_seconds && !wait(lock, room_, *wait_seconds, check_interrupt, has_room)) {
    ++queue_refusals_;
    throw QueueFull(loop_.waiting().size());
  }
  if (phase_ != Phase::Open) throw EngineClosed();
  try {
    loop_.submit(std::move(request), now());
  } catch (const DeadlineError&) {
    ++deadline_refusals_;
    throw;
  }
  return changed();
}

template <class Condition>
bool Server::wait(std::unique_lock<std::mutex>& lock, std::condition_variable& changed, double seconds,
                  const std::function<void()>& check_interrupt, Condition condition) {
  constexpr double kLongest = 1e6;  // seconds: longer waits overflow the clock
  const double end = now() + seconds, slice = check_interrupt ? kInterruptSeconds : kLongest;
  while (!changed.wait_for(lock, std::chrono::duration<double>(std::clamp(end - now(), 0.0, slice)), condition)) {
    if (!(now() < end)) return false;
    if (!check_interrupt) continue;
    lock.unlock();
    check_interrupt();
    lock.lock();
  }
  return true;
}

bool Server::submit_all(std::vector<Request> requests) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (phase_ != Phase::Open) throw EngineClosed();
  std::set<std::uint64_t> ids;
  for (const Request& request : requests) {
    loop_.check(request);
    if (!ids.insert(request.id).second) throw std::invalid_argument("an id occurs twice among the requests");
    if (request.deadline != kNever) throw std::invalid_argument("requests submitted together must have no deadline");
  }
  const double time = now();
  for (Request& request : requests) loop_.submit(std::move(request), time);
  return changed();
}

bool Server::cancel(const std::vector<std::uint64_t>& ids) {
  std::lock_guard<std::mutex> lock(mutex_);
  bool found = false;
  for (const std::uint64_t id : ids) found |= loop_.cancel(id);
  return found && changed();
}

bool Server::open(Gate& gate) {
  std::lock_guard<std::mutex> lock(mutex_);
  loop_.open(gate);
  return changed();
}

bool Server::cancel_all() {
  std::lock_guard<std::mutex> lock(mutex_);
  loop_.cancel_all();
  return changed();
}

bool Server::changed() {
  changed_ = true;
  if (served_) work_.notify_all();
  return !running_;
}

bool Server::has_samples() const {
  return !loop_.waiting().empty() || !loop_.running().empty() || !loop_.events().empty();
}

// With the server's lock held from its construction to its destruction.
class Server::Runner {
 public:
  Runner(Server& server, bool serves) : server_(server) {
    server.running_ = true;
    server.served_ = serves;
    server.by_ = std::this_thread::get_id();
  }
  Runner(const Runner&) = delete;
  Runner& operator=(const Runner&) = delete;
  ~Runner() {
    server_.running_ = server_.served_ = false;
    server_.by_ = std::thread::id();
    server_.work_.notify_all();
    server_.ended_.notify_all();
  }

 private:
  Server& server_;
};

void Server::run(Denoiser& denoiser, Listener& listener) {
  std::unique_lock<std::mutex> lock(mutex_);
  if (running_) return;
  const Runner runner(*this, false);
  std::exception_ptr first;
  // Once more after a failure: requests may have come while it was reported, and no other call runs them.
  while (std::exception_ptr error = run_until_idle(denoiser, listener, lock)) {
    if (!first) {
      first = error;
    } else {
      drop(error, lock);
    }
  }
  if (first) std::rethrow_exception(first);
}

void Server::serve(Denoiser& denoiser, Listener& listener) {
  std::unique_lock<std::mutex> lock(mutex_);
  if (running_) return;
  const Runner runner(*this, true);
  const auto done = [this] { return phase_ != Phase::Open && !has_samples(); };
  while (true) {
    // on_failure has the errors; requests that come next find a server that works.
    while (std::exception_ptr error = run_until_idle(denoiser, listener, lock)) drop(error, lock);
    if (std::exchange(poked_, false)) {
      lock.unlock();
      try {
        listener.on_idle();
      } catch (...) {
      }
      lock.lock();
    } else if (done()) {
      return;
    } else {
      work_.wait(lock, [&] { return changed_ || poked_ || done(); });
    }
  }
}

std::exception_ptr Server::run_until_idle(Denoiser& denoiser, Listener& listener, std::unique_lock<std::mutex>& lock) {
  try {
    while (true) {
      changed_ = false;
      const bool busy = loop_.prepare(now());
      if (busy) run_iteration(denoiser, lock);
      if (!busy && loop_.events().empty()) return nullptr;
      room_.notify_all();
      deliver(listener, lock);
      if (!check_invariants_) continue;
      const auto found = violations(loop_);
      if (!found.empty()) throw std::logic_error("loop invariant broken: " + found.front());
    }
#ifdef __GLIBCXX__
  } catch (const abi::__forced_unwind&) {  // ends the thread
    if (!lock.owns_lock()) lock.lock();
    throw;
#endif
  } catch (...) {
    if (!lock.owns_lock()) lock.lock();
    loop_.cancel_all();
    loop_.prepare(now());
    std::vector<Event> lost = std::exchange(delivered_, {});
    std::move(loop_.events().begin(), loop_.events().end(), std::back_inserter(lost));
    loop_.events().clear();
    room_.notify_all();
    lock.unlock();  // what kept the samples' memory alive may need Python's lock
    try {
      listener.on_failure(lost, std::current_exception());
    } catch (...) {
    }
    lost.clear();
    lock.lock();
    return std::current_exception();
  }
}

// What an error refers to may end with it, and call the server.
void Server::drop(std::exception_ptr& error, std::unique_lock<std::mutex>& lock) {
  lock.unlock();
  error = nullptr;
  lock.lock();
}

void Server::poke() {
  std::lock_guard<std::mutex> lock(mutex_);
  poked_ = true;
  work_.notify_all();
}

bool Server::served() const { return served_; }

bool Server::on_loop_thread() const { return by_ == std::this_thread::get_id(); }

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
  const auto unlocked = [&lock](auto work) {
    lock.unlock();
    std::exception_ptr error = error_of(work);
    lock.lock();
    return error;
  };
  const int rows = loop_.forward_rows();
  const std::uint64_t adapters = loop_.forward_adapters();
  std::exception_ptr error = unlocked([&] { loop_.stepper().throttle(); });
  if (!error && !loop_.extend()) error = unlocked([&] { denoiser.forward(rows, adapters); });
  if (error) return loop_.fail(std::move(error), now());
  loop_.count_padding(denoiser.computed(rows) - rows);
  if (!loop_.step(now())) return;
  if (loop_.stepper().needs_host_sync()) error = unlocked([&] { loop_.stepper().synchronize(); });
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

bool Server::close() {
  std::lock_guard<std::mutex> lock(mutex_);
  return advance(Phase::Draining);
}

bool Server::abort() {
  std::lock_guard<std::mutex> lock(mutex_);
  loop_.cancel_all();
  return advance(Phase::Aborting);
}

bool Server::advance(Phase phase) {
  phase_ = std::max(phase_.load(), phase);
  room_.notify_all();
  ended_.notify_all();
  return changed() && has_samples();
}

bool Server::wait_ended(std::optional<double> seconds, const std::function<void()>& check_interrupt) {
  if (on_loop_thread()) throw std::logic_error("a thread in run() or serve() would wait for itself");
  std::unique_lock<std::mutex> lock(mutex_);
  const double longest = seconds.value_or(std::numeric_limits<double>::infinity());
  return wait(lock, ended_, longest, check_interrupt, [this] { return has_ended(); });
}

std::vector<std::shared_ptr<void>> Server::owners() const {
  std::lock_guard<std::mutex> lock(mutex_);
  std::vector<std::shared_ptr<void>> found;
  for (const auto& [order, sample] : loop_.waiting()) found.push_back(sample->request.keep_alive);
  for (const auto& sample : loop_.running()) found.push_back(sample->request.keep_alive);
  for (const Event& event : loop_.events()) found.push_back(event.keep_alive);
  return found;
}

void Server::set_cost(const CostCurve& cost) {
  std::lock_guard<std::mutex> lock(mutex_);
  loop_.set_cost(cost);
}

std::optional<Status> Server::try_status() const {
  const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
  if (!lock) return std::nullopt;
  return status_now();
}

Status Server::status() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return status_now();
}

Status Server::status_now() const {
  return {loop_.counters(), loop_.waiting().size(), loop_.running().size(), queue_refusals_, deadline_refusals_};
}

}  // namespace stepfuse
