// Helpers of the tests in C++: random values, and a check that ends the process if it fails.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

namespace stepfuse {

inline std::atomic<std::uint64_t> round_seed{0};  // repeats a failed round

inline void require(bool holds, const char* rule, std::uint64_t id = 0) {
  if (holds) return;
  std::fprintf(stderr, "stress: %s (request %llu, round seed %llu)\n", rule, static_cast<unsigned long long>(id),
               static_cast<unsigned long long>(round_seed.load()));
  std::_Exit(1);
}

class Random {
 public:
  explicit Random(std::uint64_t seed) : engine_(seed) {}
  std::uint64_t bits() { return engine_(); }
  int from(int low, int high) { return std::uniform_int_distribution<int>(low, high)(engine_); }
  double from(double low, double high) { return std::uniform_real_distribution<double>(low, high)(engine_); }
  float coefficient(double low, double high) { return static_cast<float>(from(low, high)); }
  bool one_in(int n) { return from(1, n) == 1; }

 private:
  std::mt19937_64 engine_;
};

inline void pause(double seconds) { std::this_thread::sleep_for(std::chrono::duration<double>(seconds)); }

inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// All atomics here are relaxed: anything stronger would order the threads and hide the server's races.
class Count {
 public:
  void operator+=(std::uint64_t n) { n_.fetch_add(n, std::memory_order_relaxed); }
  void operator++() { *this += 1; }
  std::uint64_t value() const { return n_.load(std::memory_order_relaxed); }

 private:
  std::atomic<std::uint64_t> n_{0};
};

class Flag {
 public:
  void set() { on_.store(true, std::memory_order_relaxed); }
  void clear() { on_.store(false, std::memory_order_relaxed); }
  bool test_and_set() { return on_.exchange(true, std::memory_order_relaxed); }
  explicit operator bool() const { return on_.load(std::memory_order_relaxed); }

 private:
  std::atomic<bool> on_{false};
};

}  // namespace stepfuse
