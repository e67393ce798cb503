// A network that is plain arithmetic on each row alone, and fails in every way that networks do.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <set>
#include <stdexcept>
#include <utility>

#include "../../csrc/core/loop/denoiser.h"
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

// Raised once: whoever is tried again passes. Empty: the network has not looked who was there.
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

// What the network is given and gives, row by row, wherever it lies.
struct NetworkRows {
  ModelSpec spec;
  const float* sample;
  const void* timestep;
  const float* label;
  const Tag* tag;
  float* prediction;

  double timestep_of(int row) const {
    if (spec.timestep == TimestepType::Float32) return static_cast<const float*>(timestep)[row];
    return static_cast<double>(static_cast<const std::int64_t*>(timestep)[row]);
  }
  bool is_faulty(int row, Fault fault) const {
    return tag[row].fault == fault && timestep_of(row) <= tag[row].faulty_from;
  }
};

class Network : public Denoiser {
 public:
  Network(NetworkRows rows, bool padded, std::uint64_t seed)
      : rows_(std::move(rows)),
        padded_(padded),
        random_(seed),
        bad_luck_(random_.one_in(2)),
        slow_(random_.one_in(2)) {}

  void forward(int rows) final {
    const Alone alone(busy_);
    require(rows >= 1 && rows <= rows_.spec.max_rows, "a forward has rows that the memory has not");
    require(!padded_ || rows == rows_.spec.max_rows, "a forward is not padded");
    if (slow_ && random_.one_in(4)) pause(random_.from(0.0, 3e-4));
    asked_ += static_cast<std::uint64_t>(rows);
    run(rows);
    asked_ += static_cast<std::uint64_t>(computed(rows) - rows);
  }
  std::uint64_t asked() const { return asked_; }  // rows in all, and what they were padded to

 protected:
  virtual void run(int rows) = 0;

  void raise_if_faulty(int rows) {
    std::set<std::uint64_t> ids;
    for (int row = 0; row < rows; ++row) {
      if (rows_.is_faulty(row, Fault::Raises)) throw Guilty(rows_.tag[row].id);
      if (rows_.tag[row].id != 0) ids.insert(rows_.tag[row].id);
    }
    raise_by_chance(std::move(ids));
  }
  void raise_by_chance(std::set<std::uint64_t> ids) {
    if (bad_luck_ && random_.one_in(ids.size() == 1 ? 100 : 12)) throw Unlucky(std::move(ids));
  }
  void predict_all(int rows) {
    const std::int64_t n = rows_.spec.elements;
    for (int row = 0; row < rows; ++row) {
      float* out = rows_.prediction + row * n;
      predict(rows_.sample + row * n, rows_.timestep_of(row), rows_.label[row], n, out);
      if (rows_.is_faulty(row, Fault::NotFinite)) out[random_.bits() % static_cast<std::uint64_t>(n)] = NAN;
    }
  }

  const NetworkRows rows_;
  const bool padded_;
  Random random_;

 private:
  const bool bad_luck_, slow_;
  std::uint64_t asked_ = 0;
  Flag busy_;
};

}  // namespace stepfuse
