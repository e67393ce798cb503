// What a loop counts: plain numbers that are copied as a whole.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>

namespace stepfuse {

// Counts in buckets that double: bucket i holds values up to first_bound * 2^i, the last one all above.
struct Histogram {
  static constexpr int kBuckets = 24;

  explicit Histogram(double first) : first_bound(first) {}

  void add(double value, std::uint64_t times = 1) {
    int bucket = 0;
    for (double bound = first_bound; value > bound && bucket < kBuckets - 1; bound *= 2) ++bucket;
    counts[static_cast<std::size_t>(bucket)] += times;
    sum += value * static_cast<double>(times);
  }

  double first_bound;                            // the upper bound of bucket 0
  std::array<std::uint64_t, kBuckets> counts{};  // values in each bucket
  double sum = 0;                                // of all values
};

// Adds the time since its last call to one of the counters, so that every moment of an iteration is counted once.
class Stopwatch {
 public:
  void restart() { last_ = std::chrono::steady_clock::now(); }
  double add_to(double& seconds) {
    const auto now = std::chrono::steady_clock::now();
    const double passed = std::chrono::duration<double>(now - last_).count();
    seconds += passed;
    last_ = now;
    return passed;
  }

 private:
  std::chrono::steady_clock::time_point last_;
};

struct Counters {
  std::uint64_t submitted = 0;        // samples taken into the queue
  std::uint64_t samples = 0;          // finished
  std::uint64_t failures = 0;         // went non-finite, or the network raised
  std::uint64_t cancelled = 0;        // withdrawn by the caller
  std::uint64_t expired = 0;          // not finished within their timeout
  std::uint64_t deadline_misses = 0;  // finished after their deadline
  std::uint64_t steps = 0;            // fused steps, one a sample and step
  std::uint64_t forwards = 0;         // network calls
  std::uint64_t failed_forwards = 0;  // of these, the ones that raised
  std::uint64_t network_passes = 0;   // rows of them that a sample asked for
  std::uint64_t padded_rows = 0;      // rows of them that no sample asked for
  double network_seconds = 0;         // inside the denoiser
  double step_seconds = 0;            // inside the fused step and the noise
  double loop_seconds = 0;            // planning, staging, committing
  double callback_seconds = 0;        // in the listener: callbacks, logs and traces

  Histogram wait_seconds{1e-4};     // from submission to the first step
  Histogram latency_seconds{1e-4};  // from submission to the result
  Histogram forward_seconds{1e-5};  // of one network call
  Histogram forward_rows{1};        // of one network call, padding not counted
};

}  // namespace stepfuse
