// A network that is plain arithmetic on each row alone, and fails in every way that networks do.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <set>
#include <stdexcept>
#include <utility>

#include "../../csrc/core/denoiser.h"
#include "basics.h"

namespace stepfuse {

enum class Fault : std::int32_t { None, Raises, NotFinite };

// A conditioning input, the same in both of a sample's rows: whose row it is, and from which timestep on it goes wrong.
struct Tag {
  std::uint64_t id;
  float faulty_from;
  Fault fault;
};

struct Guilty : std::runtime_error {
  explicit Guilty(std::uint64_t guilty) : std::runtime_error("guilty"), id(guilty) {}
  std::uint64_t id;
};

// Raised once: whoever is tried again passes.
struct Unlucky : std::runtime_error {
  explicit Unlucky(std::set<std::uint64_t> present) : std::runtime_error("unlucky"), ids(std::move(present)) {}
  std::set<std::uint64_t> ids;
};

inline void predict(const float* x, double t, float label, std::int64_t n, float* out) {
  const float bias = 0.3f * label + 0.001f * static_cast<float>(t);
  for (std::int64_t k = 0; k < n; ++k) out[k] = 0.6f * x[k] / (1.0f + std::fabs(x[k])) - 0.2f * x[(k + 1) % n] + bias;
}

// Held by the thread that is in a place where only one may be.
class Alone {
 public:
  explicit Alone(Flag& busy) : busy_(busy) { require(!busy_.test_and_set(), "two threads drive"); }
  ~Alone() { busy_.clear(); }

 private:
  Flag& busy_;
};

class Network final : public Denoiser {
 public:
  Network(ForwardBuffers& buffers, bool padded, std::uint64_t seed)
      : buffers_(buffers), padded_(padded), random_(seed), bad_luck_(random_.one_in(2)), slow_(random_.one_in(2)) {}

  void forward(int rows) override {
    const Alone alone(busy_);
    require(rows >= 1 && rows <= buffers_.spec.max_rows, "a forward has rows that the buffers have not");
    require(!padded_ || rows == buffers_.spec.max_rows, "a forward is not padded");
    if (slow_ && random_.one_in(4)) pause(random_.from(0.0, 3e-4));
    const std::int64_t n = buffers_.spec.elements;
    std::fill_n(buffers_.prediction_row(0), rows * n, 1e30f);  // what a network leaves that raises halfway
    raise_if_faulty(rows);
    for (int row = 0; row < rows; ++row) {
      float* out = buffers_.prediction_row(row);
      predict(buffers_.sample_row(row), timestep(row), label(row), n, out);
      if (is_faulty(row, Fault::NotFinite)) out[random_.bits() % static_cast<std::uint64_t>(n)] = NAN;
    }
  }

 private:
  void raise_if_faulty(int rows) {
    std::set<std::uint64_t> ids;
    for (int row = 0; row < rows; ++row) {
      if (is_faulty(row, Fault::Raises)) throw Guilty(tag(row).id);
      if (tag(row).id != 0) ids.insert(tag(row).id);
    }
    if (bad_luck_ && random_.one_in(ids.size() > 1 ? 12 : 100)) throw Unlucky(std::move(ids));
  }

  Tag tag(int row) {
    Tag tag;
    std::memcpy(&tag, static_cast<std::byte*>(buffers_.cond[1].data()) + row * sizeof tag, sizeof tag);
    return tag;
  }

  float label(int row) { return static_cast<const float*>(buffers_.cond[0].data())[row]; }

  double timestep(int row) {
    const void* data = buffers_.timestep.data();
    if (buffers_.spec.timestep == TimestepType::Float32) return static_cast<const float*>(data)[row];
    return static_cast<double>(static_cast<const std::int64_t*>(data)[row]);
  }

  bool is_faulty(int row, Fault fault) { return tag(row).fault == fault && timestep(row) <= tag(row).faulty_from; }

  ForwardBuffers& buffers_;
  const bool padded_;
  Random random_;
  const bool bad_luck_, slow_;
  Flag busy_;
};

}  // namespace stepfuse
