// Many threads against csrc/core/loop/server.h, and a network that fails in every way that networks do.
//
//   stress [seconds] [seed]
//
// A round draws the server's options and some hundred requests at random. Each request must be answered once, by an
// event that its fate allows, its memory let go once, and what is finished must have the bits of the plain loop in
// `trajectory`. Exits with the seed of the round at the first violation; rounds are alike for a seed as far as threads
// let them be.

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
constexpr double kPatience = 30;            // seconds without news, after which a request is lost
constexpr std::uint64_t kManyRounds = 100;  // after so many, everything must have happened at least once

// How often what happened, over all rounds.
struct Tally {
  Count finished, raised, not_finite, unlucky, cancelled, expired, dropped, retried, full, late, closed, invalid,
      previews, broken;
} tally;

struct Rude : std::runtime_error {
  Rude() : std::runtime_error("the listener raised") {}
};

enum class Ending { Drained, Closed, Cancelled, Rude };

// What a client is told of one of its draws: a step done (by the event, or as a state that was not finite), or that the
// server has let go of it.
struct Notice {
  Draw* draw;
  bool let_go;
};

class Mailbox {
 public:
  void post(std::vector<Notice> notices) {
    if (notices.empty()) return;
    std::lock_guard<std::mutex> lock(mutex_);
    notices_.insert(notices_.end(), notices.begin(), notices.end());
    news_.notify_one();
  }

  // All that has come; empty if nothing does in time.
  std::vector<Notice> take(double seconds) {
    std::unique_lock<std::mutex> lock(mutex_);
    news_.wait_for(lock, std::chrono::duration<double>(seconds), [this] { return !notices_.empty(); });
    return std::exchange(notices_, {});
  }

 private:
  std::mutex mutex_;
  std::condition_variable news_;
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
        place(make_place(spec, options_.pad, random_.bits())),
        server(place->stepper(), options_, static_cast<std::size_t>(random_.from(1, 20)), true),
        listening_(random_.bits()),
        draws_(kClients * kRequests) {
    for (std::size_t i = 0; i < draws_.size(); ++i) draws_[i].id = i + 1;  // 0: a row that nobody has had yet
  }

  void run();
  void on_events(const std::vector<Event>& events) override;
  void drive();  // some thread calls run()

  Draw& draw(std::uint64_t id) { return draws_.at(id - 1); }
  Mailbox& mailbox(int client) { return mailboxes_[static_cast<std::size_t>(client)]; }

 private:
  void drive_when_told();
  void disturb();
  void hear(const Event& event, Draw& draw);
  void hear_failure(const Event& event, const Draw& draw);
  void check_counters() const;

  Random random_;

 public:
  const Ending ending;
  const ModelSpec spec;
  Flag closed, cancelled;

 private:
  const LoopOptions options_;

 public:
  const std::unique_ptr<Place> place;
  Server server;

 private:
  Random listening_;  // of the listener
  Flag heard_by_one_;
  std::deque<Draw> draws_;
  Mailbox mailboxes_[kClients];

  std::mutex mutex_;  // of the drivers
  std::condition_variable told_;
  int to_drive_ = 0;
  bool over_ = false;
};

void Round::on_events(const std::vector<Event>& events) {
  const Alone alone(heard_by_one_);
  require(!events.empty(), "the listener is told nothing");
  std::vector<Notice> notices[kClients];
  std::set<Gateway*> passed;
  for (const Event& event : events) {
    Draw& told = draw(event.id);
    hear(event, told);
    const bool stepped = event.kind == EventKind::Stepped || (event.kind == EventKind::Failed && !event.error);
    if (!stepped) continue;
    notices[told.client].push_back({&told, false});
    if (told.gateway) passed.insert(told.gateway.get());
  }
  for (Gateway* gateway : passed) require(gateway->add(-1), "an iteration went through a closed gate");
  for (int i = 0; i < kClients; ++i) mailbox(i).post(std::move(notices[i]));
  if (ending == Ending::Rude && listening_.one_in(60)) throw Rude();
}

void Round::hear(const Event& event, Draw& draw) {
  require(draw.answers == 0, "an event after the answer", event.id);
  if (event.kind == EventKind::Retried) {
    require(event.error && event.step >= 1, "retried without a reason", event.id);
    ++tally.retried;
    return;
  }
  if (event.kind == EventKind::Stepped) {
    require(draw.watched && event.step == ++draw.steps, "a step is told of twice, out of order or unasked", event.id);
    require(draw.fault != Fault::NotFinite || event.step <= draw.faulty_step, "the state told of is not finite",
            event.id);
    return;
  }
  ++draw.answers;
  draw.answer = event.kind;
  require(event.keep_alive && event.wait_seconds >= 0 && event.run_seconds >= 0, "an answer is not complete", event.id);
  switch (event.kind) {
    case EventKind::Finished:
      require(draw.fault == Fault::None, "finished in spite of its fault", event.id);
      require(draw.timeout > 0, "finished in spite of its timeout", event.id);
      require(event.step == draw.table->size(), "finished before its last step", event.id);
      require(!draw.watched || draw.steps == event.step, "finished, but not all its steps were told of", event.id);
      draw.x = draw.memory->x;
      ++tally.finished;
      break;
    case EventKind::Failed:
      hear_failure(event, draw);
      break;
    case EventKind::Cancelled:
      require(draw.cancel_asked || cancelled, "cancelled unasked", event.id);
      ++tally.cancelled;
      break;
    case EventKind::Expired:
      require(Server::now() >= draw.submitted + draw.timeout, "expired before its time", event.id);
      ++tally.expired;
      break;
    default:
      require(false, "an event of no known kind", event.id);
  }
}

void Round::hear_failure(const Event& event, const Draw& draw) {
  require(draw.timeout > 0, "stepped in spite of its timeout", event.id);
  if (!event.error) {
    // What a device reports in an iteration that breaks down is lost, and reported again with the next.
    const bool on_time = event.step == draw.faulty_step || (place->breaks_down() && event.step > draw.faulty_step);
    require(draw.fault == Fault::NotFinite && on_time, "not finite, but not its fault", event.id);
    const StepRow& row = draw.table->rows[static_cast<std::size_t>(event.step)];
    require(std::memcmp(&event.row, &row, sizeof row) == 0, "the failed row is another one", event.id);
    ++tally.not_finite;
    return;
  }
  try {
    std::rethrow_exception(event.error);
  } catch (const Guilty& guilty) {
    require(draw.fault == Fault::Raises && guilty.id == event.id && event.step == draw.faulty_step,
            "failed for another's fault", event.id);
    ++tally.raised;
  } catch (const Unlucky& unlucky) {
    require(unlucky.ids.empty() || unlucky.ids == std::set<std::uint64_t>{event.id},
            "failed in company, without a trial alone", event.id);
    ++tally.unlucky;
  } catch (const std::exception& error) {
    require(place->breaks_down(), error.what(), event.id);
    ++tally.broken;
  }
}

void Round::drive() {
  std::lock_guard<std::mutex> lock(mutex_);
  ++to_drive_;
  told_.notify_one();
}

void Round::drive_when_told() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    told_.wait(lock, [this] { return over_ || to_drive_ > 0; });
    if (to_drive_ == 0) return;
    --to_drive_;
    lock.unlock();
    try {
      server.run(place->network(), *this);
    } catch (const Rude&) {
      require(ending == Ending::Rude, "the listener raised unasked");
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
  std::uint64_t answers[6] = {}, dropped = 0, steps = 0;
  for (const Draw& draw : draws_) {
    if (draw.answers > 0 && draw.answer == EventKind::Finished) steps += static_cast<std::uint64_t>(draw.table->size());
    if (draw.answers > 0) ++answers[static_cast<int>(draw.answer)];
    dropped += draw.answers == 0 && draw.memory != nullptr;
  }
  require(status.waiting == 0 && status.running == 0, "all are answered, but some wait or run");
  require(counters.samples == answers[static_cast<int>(EventKind::Finished)], "the finished are miscounted");
  require(counters.failures == answers[static_cast<int>(EventKind::Failed)], "the failed are miscounted");
  require(counters.expired == answers[static_cast<int>(EventKind::Expired)], "the expired are miscounted");
  require(counters.submitted == counters.samples + counters.failures + counters.cancelled + counters.expired,
          "the submitted are miscounted");
  require(counters.steps >= steps && counters.steps <= counters.network_passes, "the steps are miscounted");
  require(counters.failed_forwards <= counters.forwards, "more forwards failed than were");
  // One that breaks down may do so before the network is asked.
  require(place->breaks_down() || counters.network_passes + counters.padded_rows == place->network().asked(),
          "the rows are miscounted");
  tally.dropped += dropped;
}

class Client {
 public:
  Client(Round& round, int index, std::uint64_t seed) : round_(round), index_(index), random_(seed) {}

  void run() {
    while (asked_ < kRequests && !refused_) {
      ask();
      if (random_.one_in(3)) listen(random_.from(0.0, 5e-4));
      if (random_.one_in(10)) cancel_some();
      if (random_.one_in(10)) check_status();
    }
    while (!pending_.empty()) {
      require(listen(kPatience), "is lost: neither answered nor let go", (*pending_.begin())->id);
      if (random_.one_in(50)) cancel_some();
    }
  }

 private:
  void ask() {
    if (random_.one_in(20)) return ask_nonsense();
    const int many = random_.one_in(6) ? std::min(random_.from(2, 4), kRequests - asked_) : 1;
    std::shared_ptr<Gateway> gateway;
    const bool closed_at_first = random_.one_in(2);
    if (random_.one_in(4)) gateway = std::make_shared<Gateway>(!closed_at_first);
    const bool together = many > 1 && random_.one_in(2);
    std::vector<Request> requests;
    for (int i = 0; i < many; ++i) requests.push_back(random_request(gateway, !together));
    if (together) {
      ask_all(std::move(requests));
    } else {
      for (Request& request : requests) ask_one(std::move(request));
    }
    if (gateway && closed_at_first) open(*gateway);
  }

  Request random_request(const std::shared_ptr<Gateway>& gateway, bool may_be_refused) {
    Draw& draw = round_.draw(static_cast<std::uint64_t>(index_ * kRequests + asked_++ + 1));
    draw.client = index_;
    draw.table = random_table(random_, random_.one_in(5) ? random_.from(10, 25) : random_.from(1, 8));
    random_known(random_, round_.spec.elements, draw);
    draw.seed = random_.bits();
    draw.has_noise = random_.one_in(3);
    draw.conditioned = !random_.one_in(4);
    draw.label = random_.coefficient(-1, 1);
    draw.null_label = random_.coefficient(-1, 1);
    if (round_.place->looks() && random_.one_in(12)) draw.fault = Fault::Raises;
    if (random_.one_in(12)) draw.fault = Fault::NotFinite;
    draw.faulty_step = random_.from(0, draw.table->size() - 1);
    draw.gateway = gateway;
    draw.watched = gateway || random_.one_in(3);
    draw.submitted = Server::now();
    if (random_.one_in(4)) draw.timeout = random_.one_in(4) ? 0.0 : random_.from(0.0, random_.one_in(2) ? 5e-3 : 10.0);

    const auto n = round_.spec.elements;
    const float faulty_from = draw.table->rows[static_cast<std::size_t>(draw.faulty_step)].t + 1.0f;
    auto memory = std::make_shared<Memory>();
    memory->x = draw.has_noise ? starting_noise(draw, n) : std::vector<float>(static_cast<std::size_t>(n), NAN);
    memory->x0.resize(static_cast<std::size_t>(n));
    memory->image = draw.image;
    memory->mask = draw.mask;
    memory->label = draw.label;
    memory->null_label = draw.null_label;
    memory->tag = {draw.id, faulty_from, draw.fault};
    draw.memory = memory.get();
    if (gateway) draw.preview = memory;

    Request request{};
    request.id = draw.id;
    request.table = draw.table;
    request.seed = draw.seed;
    request.has_noise = draw.has_noise;
    request.x = memory->x.data();
    if (draw.watched) request.x0 = memory->x0.data();
    if (!draw.image.empty()) {
      const float* mask = draw.mask.empty() ? nullptr : memory->mask.data();
      request.known_region = std::make_shared<const KnownRegion>(KnownRegion{memory->image.data(), mask, draw.levels});
    }
    if (draw.conditioned) request.cond = {&memory->label, &memory->tag};
    request.null_cond = {&memory->null_label, &memory->tag};
    request.priority = random_.one_in(4) ? random_.from(-1, 2) : 0;
    if (may_be_refused && random_.one_in(4)) request.deadline = draw.submitted + random_.from(0.0, 0.1);
    if (draw.timeout != kNever) request.expires = draw.submitted + draw.timeout;
    request.watched = draw.watched;
    if (gateway) request.gate = gateway->gate;
    request.keep_alive = {memory.get(), [this, memory, &draw](void*) mutable {
                            memory.reset();
                            round_.server.status();  // waits for ever if the server lets go under its lock
                            round_.mailbox(index_).post({{&draw, true}});
                          }};
    pending_.insert(&draw);
    return request;
  }

  void ask_one(Request request) {
    std::optional<double> wait = 0.0;
    if (random_.one_in(3)) wait = std::nullopt;
    if (random_.one_in(3)) wait = random_.from(0.0, 5e-3);
    Draw& draw = round_.draw(request.id);
    const bool has_deadline = request.deadline != kNever;
    try {
      if (round_.server.submit(request, wait)) round_.drive();
      return;
    } catch (const QueueFull&) {
      require(wait.has_value() && request.keep_alive && request.table, "refused by no queue, or moved from", draw.id);
      ++tally.full;
    } catch (const DeadlineError&) {
      require(has_deadline, "no deadline was given", draw.id);
      ++tally.late;
    } catch (const EngineClosed&) {
      require(bool(round_.closed), "nobody has closed it", draw.id);
      refused_ = true;
      ++tally.closed;
    }
    draw.memory = nullptr;
  }

  void ask_all(std::vector<Request> requests) {
    const std::uint64_t first = requests.front().id, end = first + requests.size();
    try {
      if (round_.server.submit_all(std::move(requests))) round_.drive();
    } catch (const EngineClosed&) {
      require(bool(round_.closed), "nobody has closed it", first);
      refused_ = true;
      ++tally.closed;
      for (std::uint64_t id = first; id < end; ++id) round_.draw(id).memory = nullptr;
    }
  }

  void ask_nonsense() {
    Request request = random_request(nullptr, false);
    Draw& draw = round_.draw(request.id);
    if (random_.one_in(2)) {
      request.table = nullptr;
    } else {
      request.null_cond.pop_back();
    }
    try {
      round_.server.submit(request, std::nullopt);
      require(false, "nonsense was taken", draw.id);
    } catch (const std::invalid_argument&) {
      ++tally.invalid;
    } catch (const EngineClosed&) {
      refused_ = true;
    }
    draw.memory = nullptr;
  }

  void check_status() {
    const Status status = round_.server.status();
    const Counters& counters = status.counters;
    const std::uint64_t ended = counters.samples + counters.failures + counters.cancelled + counters.expired;
    require(counters.submitted == ended + status.waiting + status.running, "a status does not add up");
  }

  // False if there is no news for so long.
  bool listen(double seconds) {
    const std::vector<Notice> notices = round_.mailbox(index_).take(seconds);
    std::set<Gateway*> to_open;
    for (const Notice& notice : notices) {
      Draw& draw = *notice.draw;
      if (notice.let_go) {
        require(pending_.erase(&draw) == 1, "was let go twice", draw.id);
        let_go(draw);
      } else if (draw.gateway) {
        to_open.insert(draw.gateway.get());
        check_preview(draw);
      }
    }
    for (Gateway* gateway : to_open) open(*gateway);
    return !notices.empty();
  }

  // Its gate is closed: nothing may touch it now.
  void check_preview(const Draw& draw) {
    const auto steps = static_cast<std::size_t>(draw.steps);
    if (steps == 0 || draw.fault == Fault::NotFinite) return;
    const Trajectory expected = trajectory(draw, round_.spec);
    require(same_bits(draw.preview->x0, expected.x0[steps - 1]), "the preview is another one", draw.id);
    ++tally.previews;
  }

  void let_go(Draw& draw) {
    draw.preview.reset();
    if (!draw.memory) return;  // refused
    require(draw.answers == 1 || round_.ending == Ending::Rude, "was let go, but not answered", draw.id);
    if (draw.answers == 0 || draw.answer != EventKind::Finished) return;
    require(same_bits(draw.x, trajectory(draw, round_.spec).x.back()), "the result is another one", draw.id);
  }

  void open(Gateway& gateway) {
    if (random_.one_in(5)) pause(random_.from(0.0, 1e-3));
    require(gateway.add(1), "the gate was open");
    if (round_.server.open(*gateway.gate)) round_.drive();
  }

  void cancel_some() {
    for (Draw* draw : pending_) {
      if (!random_.one_in(4)) continue;
      draw->cancel_asked.set();
      if (round_.server.cancel(draw->id)) round_.drive();
    }
  }

  Round& round_;
  const int index_;
  Random random_;
  int asked_ = 0;
  bool refused_ = false;
  std::set<Draw*> pending_;  // asked for, not let go
};

void Round::run() {
  std::vector<std::thread> drivers, clients;
  for (int i = 0; i < kDrivers; ++i) drivers.emplace_back([this] { drive_when_told(); });
  for (int i = 0; i < kClients; ++i)
    clients.emplace_back([this, i, seed = random_.bits()] { Client(*this, i, seed).run(); });
  disturb();
  for (std::thread& client : clients) client.join();
  {
    std::lock_guard<std::mutex> lock(mutex_);
    over_ = true;
    told_.notify_all();
  }
  for (std::thread& driver : drivers) driver.join();
  check_counters();
}

void report(std::uint64_t seed, std::uint64_t rounds) {
  const std::pair<const char*, const Count*> lines[] = {
      {"finished", &tally.finished},
      {"failed, the network raised", &tally.raised},
      {"failed, the network raised once", &tally.unlucky},
      {"failed, not finite", &tally.not_finite},
      {"cancelled", &tally.cancelled},
      {"expired", &tally.expired},
      {"dropped, the listener raised", &tally.dropped},
      {"refused, the queue was full", &tally.full},
      {"refused, the deadline was too near", &tally.late},
      {"refused, the server was closed", &tally.closed},
      {"refused, nonsense", &tally.invalid},
      {"retried alone", &tally.retried},
      {"previews", &tally.previews},
  };
  std::printf("stress: seed %llu, %llu rounds\n", static_cast<unsigned long long>(seed),
              static_cast<unsigned long long>(rounds));
  for (const auto& [name, count] : lines) {
    std::printf("  %-36s %llu\n", name, static_cast<unsigned long long>(count->value()));
    require(count->value() > 0 || rounds < kManyRounds, "something never happened: see the counts");
  }
  std::printf("  %-36s %llu\n", "failed, the device broke down", static_cast<unsigned long long>(tally.broken.value()));
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
