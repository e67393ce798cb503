// The network as the loop uses it: memory that both share, and one call that computes the predictions of its first
// rows.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace stepfuse {

enum class TimestepType : std::uint8_t { Float32, Int64 };

// The shape of a row of a network's inputs, and how many rows there are.
struct ModelSpec {
  std::int64_t elements;                // of one sample, C * H * W
  TimestepType timestep;                // for integer networks t is rounded
  std::vector<std::size_t> cond_bytes;  // bytes a row of each conditioning input
  int max_rows;                         // rows that the buffers hold
};

// Zeroed memory on a cache-line boundary. Pages that are never touched cost nothing.
class AlignedBuffer {
 public:
  explicit AlignedBuffer(std::size_t bytes);
  void* data() { return data_; }
  std::size_t bytes() const { return bytes_; }

 private:
  std::unique_ptr<void, void (*)(void*)> memory_;  // calloc: fresh pages come zeroed without being touched
  void* data_;
  std::size_t bytes_;
};

// Inputs and output of one forward, allocated once and bound once. Making them throws std::invalid_argument if a size
// is below 1 or the memory does not fit the address space.
struct ForwardBuffers {
  explicit ForwardBuffers(const ModelSpec& spec);

  float* sample_row(int row);
  float* prediction_row(int row);
  void set_timestep(int row, float t);
  void set_cond(std::size_t input, int row, const void* value);
  void copy_inputs(int from, int to);  // of one row to another

  ModelSpec spec;
  AlignedBuffer sample;             // (max_rows, elements) float32
  AlignedBuffer timestep;           // (max_rows,) float32 or int64
  std::vector<AlignedBuffer> cond;  // (max_rows, cond_bytes) each
  AlignedBuffer prediction;         // (max_rows, elements) float32
};

class Denoiser {
 public:
  virtual ~Denoiser() = default;
  // Reads rows [0, rows) of the inputs, writes rows [0, rows) of the prediction, by the network with this set of
  // adapters; 0: without any. Throws if it cannot.
  virtual void forward(int rows, std::uint64_t adapters) = 0;
  // Rows that a forward of `rows` computes: more than `rows` if the network has only some sizes.
  virtual int computed(int rows) const { return rows; }
};

}  // namespace stepfuse
