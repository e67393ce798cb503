// An iteration in which no sample joins or leaves allocates nothing. Counts every `new`; exits non-zero at the first
// scenario that allocates.

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#include "../../csrc/core/loop/host_stepper.h"
#include "../../csrc/core/loop/server.h"
#include "random_samples.h"

namespace {

std::atomic<bool> counting{false};
std::atomic<long> allocations{0};

void* allocate(std::size_t bytes, std::size_t alignment) {
  if (counting) ++allocations;
  const std::size_t rounded = (bytes + alignment - 1) / alignment * alignment;
  void* memory = std::aligned_alloc(alignment, rounded > 0 ? rounded : alignment);
  if (!memory) throw std::bad_alloc();
  return memory;
}

}  // namespace

// The array and nothrow forms end up in these.
void* operator new(std::size_t bytes) { return allocate(bytes, alignof(std::max_align_t)); }
void* operator new(std::size_t bytes, std::align_val_t alignment) {
  return allocate(bytes, static_cast<std::size_t>(alignment));
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }

namespace {

using namespace stepfuse;

constexpr int kSlots = 64;
constexpr int kWarmUp = 50, kCounted = 300;  // iterations
constexpr std::int64_t kElements = 48;

struct Scenario {
  const char* name;
  int max_rows;
  Policy policy;
  int waiting;  // beside the running ones
};

// Requests each of which, by any policy, steps before those submitted before it.
class Samples {
 public:
  explicit Samples(int count) : x_(static_cast<std::size_t>(count * kElements)), x0_(x_.size()) {
    Random random(1);
    // More steps than there are iterations: no sample leaves. Guidance comes and goes, so rows change their samples.
    for (int i = 0; i < kSlots; ++i)
      tables_.push_back(random_table(random, kSlots + kWarmUp + kCounted + 20 * i, kElements));
    const auto longer = [](const auto& a, const auto& b) { return a->passes_left(0, true) > b->passes_left(0, true); };
    std::sort(tables_.begin(), tables_.end(), longer);
  }

  // Every other one watched, every eighth behind the gate, every fourth with a mask.
  Request request(int i) {
    const auto index = static_cast<std::size_t>(i);
    const bool waits = i >= kSlots;
    Request request{};
    request.id = index;
    request.table = tables_[waits ? 0 : index];
    request.seed = index;
    request.x = &x_[index * kElements];
    request.watched = i % 2 == 0;
    if (request.watched) request.x0 = &x0_[index * kElements];
    request.cond = {&label_};
    request.null_cond = {&null_label_};
    request.priority = waits ? -1 : 0;
    request.deadline = 1e9 - i;
    request.expires = 2e9 + i;
    if (i % 8 == 0) request.gate = gate;
    if (i % 4 == 1) {
      std::vector<Level> levels(request.table->rows.size() + 1, {0.5f, 0.5f});
      request.known_region =
          std::make_shared<const KnownRegion>(KnownRegion{known_.data(), known_.data(), std::move(levels)});
    }
    return request;
  }

  std::shared_ptr<Gate> gate = std::make_shared<Gate>();

 private:
  std::vector<std::shared_ptr<const Table>> tables_;
  std::vector<float> x_, x0_;
  std::vector<float> known_ = std::vector<float>(kElements, 0.5f);
  float label_ = 0.5f, null_label_ = -0.5f;
};

ModelSpec spec_of(const Scenario& scenario) {
  return {kElements, TimestepType::Float32, {sizeof(float)}, scenario.max_rows};
}

LoopOptions options_of(const Scenario& scenario) {
  LoopOptions options{kSlots, {}, scenario.policy};
  options.ageing = 0.01;
  return options;
}

void predict_rows(ForwardBuffers& buffers, int rows) {
  for (int row = 0; row < rows; ++row)
    predict(buffers.sample_row(row), 0, 0, buffers.spec.elements, buffers.prediction_row(row));
}

long allocations_of_loop(const Scenario& scenario) {
  auto owned = std::make_unique<HostStepper>(spec_of(scenario));
  ForwardBuffers& buffers = owned->buffers();
  Loop loop(std::move(owned), options_of(scenario));
  Samples samples(kSlots + scenario.waiting);
  double now = 0;
  const auto iteration = [&] {
    now += 1e-3;
    require(loop.prepare(now), "an iteration has nothing to do");
    predict_rows(buffers, loop.forward_rows());
    loop.step(now);
    loop.commit(nullptr, now);
    loop.events().clear();
    loop.open(*samples.gate);
  };
  for (int i = 0; i < kSlots; ++i) {
    loop.submit(samples.request(i), now);
    iteration();
  }
  for (int i = kSlots; i < kSlots + scenario.waiting; ++i) loop.submit(samples.request(i), now);
  for (int i = 0; i < kWarmUp; ++i) iteration();
  allocations = 0;
  counting = true;
  for (int i = 0; i < kCounted; ++i) iteration();
  counting = false;
  require(loop.running().size() == kSlots && loop.counters().samples == 0, "not all slots are taken all the time");
  return allocations;
}

// The same through the server.
class ServerRun final : public Denoiser, public Listener {
 public:
  explicit ServerRun(const Scenario& scenario)
      : scenario_(scenario),
        stepper_(std::make_unique<HostStepper>(spec_of(scenario))),
        buffers_(stepper_->buffers()),
        server_(std::move(stepper_), options_of(scenario), 1, false),
        samples_(kSlots + scenario.waiting) {}

  long run() {
    submit(0);
    server_.run(*this, *this);
    return allocations;
  }

  void forward(int rows, std::uint64_t) override {
    ++iterations_;
    if (iterations_ < kSlots) submit(iterations_);
    if (iterations_ == kSlots)
      for (int i = 0; i < scenario_.waiting; ++i) submit(kSlots + i);
    if (iterations_ == kSlots + kWarmUp) {
      allocations = 0;
      counting = true;
    }
    if (iterations_ == kSlots + kWarmUp + kCounted) end();
    predict_rows(buffers_, rows);
  }

  void on_events(std::vector<Event>&) override { server_.open(*samples_.gate); }

 private:
  void submit(int i) {
    Request request = samples_.request(i);
    server_.submit(request, std::nullopt);
  }

  void end() {
    counting = false;
    const Status status = server_.status();
    require(status.running == kSlots && status.counters.samples == 0, "not all slots are taken all the time");
    server_.cancel_all();
  }

  const Scenario scenario_;
  std::unique_ptr<HostStepper> stepper_;  // until the server has it
  ForwardBuffers& buffers_;
  Server server_;
  Samples samples_;
  int iterations_ = 0;
};

bool passes(const char* driver, const Scenario& scenario, long found) {
  std::printf("%ld allocations in %d iterations of the %s: %s\n", found, kCounted, driver, scenario.name);
  return found == 0;
}

}  // namespace

int main() {
  const Scenario scenarios[] = {
      {"64 samples step", 2 * kSlots, Policy::FirstCome, 0},
      {"64 samples step, 5000 wait", 2 * kSlots, Policy::FirstCome, 5000},
      {"64 samples share 16 rows, the shortest first", 16, Policy::ShortestFirst, 0},
      {"64 samples share 16 rows, the shortest first, 5000 wait", 16, Policy::ShortestFirst, 5000},
      {"64 samples share 16 rows, the earliest deadline first", 16, Policy::EarliestDeadline, 100},
  };
  bool passed = true;
  for (const Scenario& scenario : scenarios) {
    passed = passes("loop", scenario, allocations_of_loop(scenario)) && passed;
    passed = passes("server", scenario, ServerRun(scenario).run()) && passed;
  }
  return passed ? 0 : 1;
}
