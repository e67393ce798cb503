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

enum class Fault : std::int32_t {
  None,
  Raises,     // the network raises while a row of the sample is in a forward
  NotFinite,  // the prediction has a NaN
};

// A conditioning input, the same in both of a sample's rows: the sample, and from which timestep on it has which fault.
struct Tag {
  std::uint64_t id;
  float faulty_from;
  Fault fault;
};

// Raised for a row with Fault::Raises.
struct FaultyRow : std::runtime_error {
  explicit FaultyRow(std::uint64_t sample) : std::runtime_error("a row is faulty"), id(sample) {}
  std::uint64_t id;
};

// Raised at random, for no fault of the samples: a retry may pass. No ids: the network has not read its rows.
struct TransientError : std::runtime_error {
  explicit TransientError(std::set<std::uint64_t> present) : std::runtime_error("transient"), ids(std::move(present)) {}
  std::set<std::uint64_t> ids;
};

inline void predict(const float* x, double t, float label, std::int64_t n, float* out) {
  const float bias = 0.3f * label + 0.001f * static_cast<float>(t);
  for (std::int64_t k = 0; k < n; ++k) out[k] = 0.6f * x[k] / (1.0f + std::fabs(x[k])) - 0.2f * x[(k + 1) % n] + bias;
}

// Held by a thread in a section that only one may be in.
class ExclusiveUse {
 public:
  explicit ExclusiveUse(Flag& busy) : busy_(busy) { require(!busy_.test_and_set(), "two threads are in run()"); }
  ~ExclusiveUse() { busy_.clear(); }

 private:
  Flag& busy_;
};

// The network's inputs and its output, row by row, in any memory.
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
        raises_at_random_(random_.one_in(2)),
        slow_(random_.one_in(2)) {}

  void forward(int rows, std::uint64_t) final {
    const ExclusiveUse alone(busy_);
    require(rows >= 1 && rows <= rows_.spec.max_rows, "a forward has more rows than the memory");
    require(!padded_ || rows == rows_.spec.max_rows, "a forward is not padded");
    if (slow_ && random_.one_in(4)) pause(random_.from(0.0, 3e-4));
    rows_computed_ += static_cast<std::uint64_t>(rows);
    run(rows);
    rows_computed_ += static_cast<std::uint64_t>(computed(rows) - rows);
  }
  virtual std::uint64_t rows_computed() const { return rows_computed_; }  // of all forwards, padding included

 protected:
  virtual void run(int rows) = 0;

  void raise_if_faulty(int rows) {
    std::set<std::uint64_t> ids;
    for (int row = 0; row < rows; ++row) {
      if (rows_.is_faulty(row, Fault::Raises)) throw FaultyRow(rows_.tag[row].id);
      if (rows_.tag[row].id != 0) ids.insert(rows_.tag[row].id);
    }
    raise_by_chance(std::move(ids));
  }
  void raise_by_chance(std::set<std::uint64_t> ids) {
    if (raises_at_random_ && random_.one_in(ids.size() == 1 ? 100 : 12)) throw TransientError(std::move(ids));
  }
  // On a device any thread that waits for it may be here, also while another is in forward(): nothing is drawn.
  void predict_all(int rows) const {
    const std::int64_t n = rows_.spec.elements;
    for (int row = 0; row < rows; ++row) {
      float* out = rows_.prediction + row * n;
      predict(rows_.sample + row * n, rows_.timestep_of(row), rows_.label[row], n, out);
      if (rows_.is_faulty(row, Fault::NotFinite)) out[rows_.tag[row].id % static_cast<std::uint64_t>(n)] = NAN;
    }
  }

  const NetworkRows rows_;
  const bool padded_;
  Random random_;

 private:
  const bool raises_at_random_, slow_;
  std::uint64_t rows_computed_ = 0;
  Flag busy_;
};

}  // namespace stepfuse
