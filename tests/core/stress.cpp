// Many threads on one csrc/core/loop/server.h, with a network that fails in every way that networks do.
//
//   stress [seconds] [seed]
//
// A round makes the server's options and some hundred requests at random. Each request must end with exactly one event,
// of a kind that the request allows, its memory must be released once, and a result must have the bits of the plain
// loop in `trajectory`. Exits with the seed of the round at the first violation; rounds are alike for a seed as far as
// threads let them be.

#include <algorithm>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <set>
#include <stdexcept>
#include <thread>
#include <utility>
#include <vector>

#include "../../csrc/core/loop/server.h"
#include "random_samples.h"
#include "stress_backend.h"

namespace {

using namespace stepfuse;

constexpr int kClients = 4;
constexpr int kDrivers = 2;
constexpr int kRequests = 30;               // of each client, in a round
constexpr double kTimeout = 30;             // seconds without a notice, after which a request is lost
constexpr std::uint64_t kManyRounds = 100;  // after so many, every outcome must have occurred at least once

// How often each outcome occurred, over all rounds.
struct Tally {
  Count finished, raised, not_finite, transient, cancelled, expired, dropped, retried, full, late, closed, invalid,
      previews, device_raised;
} tally;

struct ListenerError : std::runtime_error {
  ListenerError() : std::runtime_error("the listener raised") {}
};

// How a round ends.
enum class Ending {
  Drained,         // every request comes to its own end
  Closed,          // the server is closed while clients submit
  Cancelled,       // everything is cancelled, once or more
  ListenerRaises,  // the listener raises now and then
};

// What a client is notified of: that one of its samples has stepped (a step event, or a failure by a state that was not
// finite), or that the server has released its memory.
struct Notice {
  RandomSample* sample;
  bool released;
};

class Mailbox {
 public:
  void post(std::vector<Notice> notices) {
    if (notices.empty()) return;
    std::lock_guard<std::mutex> lock(mutex_);
    notices_.insert(notices_.end(), notices.begin(), notices.end());
    posted_.notify_one();
  }

  // All notices so far; empty if none is posted in time.
  std::vector<Notice> take(double seconds) {
    std::unique_lock<std::mutex> lock(mutex_);
    posted_.wait_for(lock, std::chrono::duration<double>(seconds), [this] { return !notices_.empty(); });
    return std::exchange(notices_, {});
  }

 private:
  std::mutex mutex_;
  std::condition_variable posted_;
  std::vector<Notice> notices_;
};

ModelSpec random_spec(Random& random) {
  const auto type = random.one_in(2) ? TimestepType::Int64 : TimestepType::Float32;
  return {random.from(1, 40), type, {sizeof(float), sizeof(Tag)}, random.from(2, 9)};
}

CostCurve random_cost(Random& random) {
  if (random.one_in(2)) return {};
  return {random.from(0.0, 1e-3), random.from(1e-5, 1e-4)};
}

LoopOptions random_options(Random& random) {
  constexpr Policy kPolicies[] = {Policy::FirstCome, Policy::ShortestFirst, Policy::EarliestDeadline};
  LoopOptions options{random.from(1, 12), random_cost(random)};
  options.policy = kPolicies[random.from(0, 2)];
  options.ageing = random.from(0.0, 0.2);
  options.pad = random.one_in(2);
  return options;
}

class Round final : public Listener {
 public:
  explicit Round(std::uint64_t seed)
      : random_(seed),
        ending(static_cast<Ending>(random_.from(0, 3))),
        spec(random_spec(random_)),
        options_(random_options(random_)),
        backend(make_stress_backend(spec, options_.pad, random_.bits())),
        server(backend->stepper(), options_, static_cast<std::size_t>(random_.from(1, 20)), true),
        listener_random_(random_.bits()),
        samples_(kClients * kRequests) {
    for (std::size_t i = 0; i < samples_.size(); ++i) samples_[i].id = i + 1;  // 0: a row that no sample has had yet
  }

  void run();
  void on_events(std::vector<Event>& events) override;
  void drive();  // has a driver call run()

  RandomSample& sample_of(std::uint64_t id) { return samples_.at(id - 1); }
  Mailbox& mailbox(int client) { return mailboxes_[static_cast<std::size_t>(client)]; }

 private:
  void run_driver();
  void disturb();
  void check_event(const Event& event, RandomSample& sample);
  void check_failure(const Event& event, const RandomSample& sample);
  void check_counters() const;

  Random random_;

 public:
  const Ending ending;
  const ModelSpec spec;
  Flag closed, cancelled;

 private:
  const LoopOptions options_;

 public:
  const std::unique_ptr<StressBackend> backend;
  Server server;

 private:
  Random listener_random_;  // of the listener
  Flag listener_busy_;
  std::deque<RandomSample> samples_;
  Mailbox mailboxes_[kClients];

  std::mutex mutex_;  // of the drivers
  std::condition_variable wake_driver_;
  int runs_wanted_ = 0;
  bool over_ = false;
};

void Round::on_events(std::vector<Event>& events) {
  const ExclusiveUse alone(listener_busy_);
  require(!events.empty(), "the listener is called without events");
  std::vector<Notice> notices[kClients];
  std::set<CountedGate*> passed;
  for (const Event& event : events) {
    RandomSample& sample = sample_of(event.id);
    check_event(event, sample);
    const bool stepped = event.kind == EventKind::Stepped || (event.kind == EventKind::Failed && !event.error);
    if (!stepped) continue;
    notices[sample.client].push_back({&sample, false});
    if (sample.gate) passed.insert(sample.gate.get());
  }
  for (CountedGate* gate : passed) require(gate->add(-1), "an iteration went through a closed gate");
  for (int i = 0; i < kClients; ++i) mailbox(i).post(std::move(notices[i]));
  if (ending == Ending::ListenerRaises && listener_random_.one_in(60)) throw ListenerError();
}

void Round::check_event(const Event& event, RandomSample& sample) {
  require(sample.ends == 0, "an event after the last one", event.id);
  if (event.kind == EventKind::Retried) {
    require(event.error && event.step >= 1, "retried without a reason", event.id);
    ++tally.retried;
    return;
  }
  if (event.kind == EventKind::Stepped) {
    require(sample.watched && event.step == ++sample.steps,
            "a step event came twice, out of order or for an unwatched sample", event.id);
    require(sample.fault != Fault::NotFinite || event.step <= sample.faulty_step,
            "a step event came for a state that is not finite", event.id);
    return;
  }
  ++sample.ends;
  sample.end = event.kind;
  require(event.keep_alive && event.wait_seconds >= 0 && event.run_seconds >= 0, "the last event is not complete",
          event.id);
  switch (event.kind) {
    case EventKind::Finished:
      require(sample.fault == Fault::None, "finished in spite of its fault", event.id);
      require(sample.timeout > 0, "finished in spite of its timeout", event.id);
      require(event.step == sample.table->size(), "finished before its last step", event.id);
      require(!sample.watched || sample.steps == event.step, "finished, but not all its steps had events", event.id);
      sample.x = sample.memory->x;
      require(!sample.memory->copy || std::equal(sample.x.begin(), sample.x.end(), sample.memory->copy.get()),
              "the copy on the device is another", event.id);
      ++tally.finished;
      break;
    case EventKind::Failed:
      check_failure(event, sample);
      break;
    case EventKind::Cancelled:
      require(sample.cancel_asked || cancelled, "cancelled without a request to", event.id);
      ++tally.cancelled;
      break;
    case EventKind::Expired:
      require(Server::now() >= sample.submitted + sample.timeout, "expired before its time", event.id);
      ++tally.expired;
      break;
    default:
      require(false, "an event of no known kind", event.id);
  }
}

void Round::check_failure(const Event& event, const RandomSample& sample) {
  require(sample.timeout > 0, "stepped in spite of its timeout", event.id);
  if (!event.error) {
    // What a device reports in an iteration that fails is lost, and is reported again with the next one.
    const bool on_time =
        event.step == sample.faulty_step || (backend->fails_at_random() && event.step > sample.faulty_step);
    require(sample.fault == Fault::NotFinite && on_time, "not finite, but not its fault", event.id);
    const StepRow& row = sample.table->rows[static_cast<std::size_t>(event.step)];
    require(std::memcmp(&event.row, &row, sizeof row) == 0, "the event has another row", event.id);
    ++tally.not_finite;
    return;
  }
  try {
    std::rethrow_exception(event.error);
  } catch (const FaultyRow& faulty) {
    require(sample.fault == Fault::Raises && faulty.id == event.id && event.step == sample.faulty_step,
            "failed by the fault of another sample", event.id);
    ++tally.raised;
  } catch (const TransientError& transient) {
    require(transient.ids.empty() || transient.ids == std::set<std::uint64_t>{event.id},
            "failed together with others, without having run alone", event.id);
    ++tally.transient;
  } catch (const std::exception& error) {
    require(backend->fails_at_random(), error.what(), event.id);
    ++tally.device_raised;
  }
}

void Round::drive() {
  std::lock_guard<std::mutex> lock(mutex_);
  ++runs_wanted_;
  wake_driver_.notify_one();
}

void Round::run_driver() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    wake_driver_.wait(lock, [this] { return over_ || runs_wanted_ > 0; });
    if (runs_wanted_ == 0) return;
    --runs_wanted_;
    lock.unlock();
    try {
      server.run(backend->network(), *this);
    } catch (const ListenerError&) {
      require(ending == Ending::ListenerRaises, "the listener raised where it should not");
    } catch (const std::exception& error) {
      require(false, error.what());
    }
    lock.lock();
  }
}

void Round::disturb() {
  for (int i = random_.from(0, 3); i > 0; --i) {
    pause(random_.from(0.0, 5e-3));
    server.set_cost(random_cost(random_));
  }
  if (ending == Ending::Closed) {
    closed.set();
    server.close();
  }
  if (ending != Ending::Cancelled) return;
  cancelled.set();
  for (int i = random_.from(1, 3); i > 0; --i) {
    if (server.cancel_all()) drive();
    pause(random_.from(0.0, 3e-3));
  }
}

void Round::check_counters() const {
  const Status status = server.status();
  const Counters& counters = status.counters;
  std::uint64_t ends[6] = {}, dropped = 0, steps = 0;
  for (const RandomSample& sample : samples_) {
    if (sample.ends > 0 && sample.end == EventKind::Finished) steps += static_cast<std::uint64_t>(sample.table->size());
    if (sample.ends > 0) ++ends[static_cast<int>(sample.end)];
    dropped += sample.ends == 0 && sample.memory != nullptr;
  }
  require(status.waiting == 0 && status.running == 0, "all have ended, but some wait or run");
  require(counters.samples == ends[static_cast<int>(EventKind::Finished)], "the finished are miscounted");
  require(counters.failures == ends[static_cast<int>(EventKind::Failed)], "the failed are miscounted");
  require(counters.expired == ends[static_cast<int>(EventKind::Expired)], "the expired are miscounted");
  require(counters.submitted == counters.samples + counters.failures + counters.cancelled + counters.expired,
          "the submitted are miscounted");
  require(counters.steps >= steps && counters.steps <= counters.network_passes, "the steps are miscounted");
  require(counters.failed_forwards <= counters.forwards, "more forwards failed than were");
  // A backend that fails at random may do so before the network has computed the rows.
  require(backend->fails_at_random() ||
              counters.network_passes + counters.padded_rows == backend->network().rows_computed(),
          "the rows are miscounted");
  tally.dropped += dropped;
}

class Client {
 public:
  Client(Round& round, int index, std::uint64_t seed) : round_(round), index_(index), random_(seed) {}

  void run() {
    while (submitted_ < kRequests && !refused_) {
      submit_some();
      if (random_.one_in(3)) take_notices(random_.from(0.0, 5e-4));
      if (random_.one_in(10)) cancel_some();
      if (random_.one_in(10)) check_status();
    }
    while (!pending_.empty()) {
      const auto first = (*pending_.begin())->id;  // a notice may end the last of them
      require(take_notices(kTimeout), "is lost: neither ended nor released", first);
      if (random_.one_in(50)) cancel_some();
    }
  }

 private:
  void submit_some() {
    if (random_.one_in(20)) return submit_invalid();
    const int many = random_.one_in(6) ? std::min(random_.from(2, 4), kRequests - submitted_) : 1;
    std::shared_ptr<CountedGate> gate;
    const bool closed_at_first = random_.one_in(2);
    if (random_.one_in(4)) gate = std::make_shared<CountedGate>(!closed_at_first);
    const bool together = many > 1 && random_.one_in(2);
    std::vector<Request> requests;
    for (int i = 0; i < many; ++i) requests.push_back(random_request(gate, !together));
    if (together) {
      submit_together(std::move(requests));
    } else {
      for (Request& request : requests) submit_one(std::move(request));
    }
    if (gate && closed_at_first) open(*gate);
  }

  Request random_request(const std::shared_ptr<CountedGate>& gate, bool may_be_refused) {
    RandomSample& sample = round_.sample_of(static_cast<std::uint64_t>(index_ * kRequests + submitted_++ + 1));
    sample.client = index_;
    sample.table =
        random_table(random_, random_.one_in(5) ? random_.from(10, 25) : random_.from(1, 8), round_.spec.elements);
    random_known(random_, round_.spec.elements, sample);
    sample.seed = random_.bits();
    sample.has_noise = random_.one_in(3);
    sample.conditioned = !random_.one_in(4);
    sample.label = random_.coefficient(-1, 1);
    sample.null_label = random_.coefficient(-1, 1);
    if (round_.backend->reads_rows() && random_.one_in(12)) sample.fault = Fault::Raises;
    if (random_.one_in(12)) sample.fault = Fault::NotFinite;
    sample.faulty_step = random_.from(0, sample.table->size() - 1);
    sample.gate = gate;
    sample.watched = gate || random_.one_in(3);
    sample.submitted = Server::now();
    if (random_.one_in(4))
      sample.timeout = random_.one_in(4) ? 0.0 : random_.from(0.0, random_.one_in(2) ? 5e-3 : 10.0);

    const auto n = round_.spec.elements;
    const float faulty_from = sample.table->rows[static_cast<std::size_t>(sample.faulty_step)].t + 1.0f;
    auto memory = std::make_shared<Memory>();
    memory->x = sample.has_noise ? starting_noise(sample, n) : std::vector<float>(static_cast<std::size_t>(n), NAN);
    memory->x0.resize(static_cast<std::size_t>(n));
    memory->image = sample.image;
    memory->mask = sample.mask;
    memory->label = sample.label;
    memory->null_label = sample.null_label;
    memory->tag = {sample.id, faulty_from, sample.fault};
    sample.memory = memory.get();
    if (gate) sample.preview = memory;

    Request request{};
    request.id = sample.id;
    request.table = sample.table;
    request.seed = sample.seed;
    request.has_noise = sample.has_noise;
    request.x = memory->x.data();
    if (sample.watched) request.x0 = memory->x0.data();
    if (!sample.image.empty()) {
      const float* mask = sample.mask.empty() ? nullptr : memory->mask.data();
      request.known_region =
          std::make_shared<const KnownRegion>(KnownRegion{memory->image.data(), mask, sample.levels});
    }
    if (sample.conditioned) request.cond = {&memory->label, &memory->tag};
    request.null_cond = {&memory->null_label, &memory->tag};
    if (random_.one_in(2)) memory->copy = round_.backend->device_memory();
    request.device_copy = reinterpret_cast<std::uint64_t>(memory->copy.get());
    request.priority = random_.one_in(4) ? random_.from(-1, 2) : 0;
    request.adapters = random_.one_in(2) ? static_cast<std::uint64_t>(random_.from(1, 3)) : 0;
    if (may_be_refused && random_.one_in(4)) request.deadline = sample.submitted + random_.from(0.0, 0.1);
    if (sample.timeout != kNever) request.expires = sample.submitted + sample.timeout;
    request.watched = sample.watched;
    if (gate) request.gate = gate->gate;
    request.keep_alive = {memory.get(), [this, memory, &sample](void*) mutable {
                            memory.reset();
                            round_.server.status();  // deadlocks if the server releases memory under its lock
                            round_.mailbox(index_).post({{&sample, true}});
                          }};
    pending_.insert(&sample);
    return request;
  }

  void submit_one(Request request) {
    std::optional<double> wait = 0.0;
    if (random_.one_in(3)) wait = std::nullopt;
    if (random_.one_in(3)) wait = random_.from(0.0, 5e-3);
    RandomSample& sample = round_.sample_of(request.id);
    const bool has_deadline = request.deadline != kNever;
    try {
      if (round_.server.submit(request, wait)) round_.drive();
      return;
    } catch (const QueueFull&) {
      require(wait.has_value() && request.keep_alive && request.table,
              "refused although no limit was given, or moved from", sample.id);
      ++tally.full;
    } catch (const DeadlineError&) {
      require(has_deadline, "no deadline was given", sample.id);
      ++tally.late;
    } catch (const EngineClosed&) {
      require(bool(round_.closed), "refused as closed, but the server is open", sample.id);
      refused_ = true;
      ++tally.closed;
    }
    sample.memory = nullptr;
  }

  void submit_together(std::vector<Request> requests) {
    const std::uint64_t first = requests.front().id, end = first + requests.size();
    try {
      if (round_.server.submit_all(std::move(requests))) round_.drive();
    } catch (const EngineClosed&) {
      require(bool(round_.closed), "refused as closed, but the server is open", first);
      refused_ = true;
      ++tally.closed;
      for (std::uint64_t id = first; id < end; ++id) round_.sample_of(id).memory = nullptr;
    }
  }

  void submit_invalid() {
    Request request = random_request(nullptr, false);
    RandomSample& sample = round_.sample_of(request.id);
    if (random_.one_in(2)) {
      request.table = nullptr;
    } else {
      request.null_cond.pop_back();
    }
    try {
      round_.server.submit(request, std::nullopt);
      require(false, "an invalid request was accepted", sample.id);
    } catch (const std::invalid_argument&) {
      ++tally.invalid;
    } catch (const EngineClosed&) {
      refused_ = true;
    }
    sample.memory = nullptr;
  }

  void check_status() {
    const Status status = round_.server.status();
    const Counters& counters = status.counters;
    const std::uint64_t ended = counters.samples + counters.failures + counters.cancelled + counters.expired;
    require(counters.submitted == ended + status.waiting + status.running, "a status does not add up");
  }

  // Handles the notices so far; false if none is posted in time.
  bool take_notices(double seconds) {
    const std::vector<Notice> notices = round_.mailbox(index_).take(seconds);
    std::set<CountedGate*> to_open;
    for (const Notice& notice : notices) {
      RandomSample& sample = *notice.sample;
      if (notice.released) {
        require(pending_.erase(&sample) == 1, "was released twice", sample.id);
        check_released(sample);
      } else if (sample.gate) {
        to_open.insert(sample.gate.get());
        check_preview(sample);
      }
    }
    for (CountedGate* gate : to_open) open(*gate);
    return !notices.empty();
  }

  // Its gate is closed: nothing may touch it now.
  void check_preview(const RandomSample& sample) {
    const auto steps = static_cast<std::size_t>(sample.steps);
    if (steps == 0 || sample.fault == Fault::NotFinite) return;
    const Trajectory expected = trajectory(sample, round_.spec);
    require(same_bits(sample.preview->x0, expected.x0[steps - 1]), "the preview has other bits", sample.id);
    ++tally.previews;
  }

  void check_released(RandomSample& sample) {
    sample.preview.reset();
    if (!sample.memory) return;  // refused
    require(sample.ends == 1 || round_.ending == Ending::ListenerRaises, "was released, but has not ended", sample.id);
    if (sample.ends == 0 || sample.end != EventKind::Finished) return;
    require(same_bits(sample.x, trajectory(sample, round_.spec).x.back()), "the result has other bits", sample.id);
  }

  void open(CountedGate& gate) {
    if (random_.one_in(5)) pause(random_.from(0.0, 1e-3));
    require(gate.add(1), "the gate was open");
    if (round_.server.open(*gate.gate)) round_.drive();
  }

  void cancel_some() {
    for (RandomSample* sample : pending_) {
      if (!random_.one_in(4)) continue;
      sample->cancel_asked.set();
      if (round_.server.cancel({sample->id})) round_.drive();
    }
  }

  Round& round_;
  const int index_;
  Random random_;
  int submitted_ = 0;
  bool refused_ = false;
  std::set<RandomSample*> pending_;  // submitted and not released
};

void Round::run() {
  std::vector<std::thread> drivers, clients;
  for (int i = 0; i < kDrivers; ++i) drivers.emplace_back([this] { run_driver(); });
  for (int i = 0; i < kClients; ++i)
    clients.emplace_back([this, i, seed = random_.bits()] { Client(*this, i, seed).run(); });
  std::thread serving;  // in some rounds; the drivers' runs then return at once
  if (random_.one_in(2)) serving = std::thread([this] { server.serve(backend->network(), *this); });
  disturb();
  for (std::thread& client : clients) client.join();
  if (serving.joinable()) {
    server.close();
    require(server.wait_ended(60.0), "closed, but a thread does not leave the loop");
    serving.join();
  }
  {
    std::lock_guard<std::mutex> lock(mutex_);
    over_ = true;
    wake_driver_.notify_all();
  }
  for (std::thread& driver : drivers) driver.join();
  check_counters();
}

void report(std::uint64_t seed, std::uint64_t rounds) {
  const std::pair<const char*, const Count*> lines[] = {
      {"finished", &tally.finished},
      {"failed, the network raised", &tally.raised},
      {"failed, the network raised once", &tally.transient},
      {"failed, not finite", &tally.not_finite},
      {"cancelled", &tally.cancelled},
      {"expired", &tally.expired},
      {"dropped, the listener raised", &tally.dropped},
      {"refused, the queue was full", &tally.full},
      {"refused, the deadline was too near", &tally.late},
      {"refused, the server was closed", &tally.closed},
      {"refused, invalid", &tally.invalid},
      {"retried alone", &tally.retried},
      {"previews", &tally.previews},
  };
  std::printf("stress: seed %llu, %llu rounds\n", static_cast<unsigned long long>(seed),
              static_cast<unsigned long long>(rounds));
  for (const auto& [name, count] : lines) {
    std::printf("  %-36s %llu\n", name, static_cast<unsigned long long>(count->value()));
    require(count->value() > 0 || rounds < kManyRounds, "an outcome never occurred: see the counts");
  }
  std::printf("  %-36s %llu\n", "failed, the device raised",
              static_cast<unsigned long long>(tally.device_raised.value()));
}

}  // namespace

int main(int count, char** arguments) {
  const double seconds = count > 1 ? std::strtod(arguments[1], nullptr) : 3;
  const std::uint64_t seed = count > 2 ? std::strtoull(arguments[2], nullptr, 10) : std::random_device()();
  const double end = Server::now() + seconds;
  std::uint64_t rounds = 0;
  for (; Server::now() < end; ++rounds) {
    round_seed = seed + rounds;
    Round(seed + rounds).run();
  }
  report(seed, rounds);
}
