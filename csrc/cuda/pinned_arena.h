// Pinned memory that is allocated piece by piece and released as a whole.
#pragma once

#include <cstddef>
#include <vector>

#include "memory.h"

namespace stepfuse::cuda {

class PinnedArena {
 public:
  explicit PinnedArena(ContextPtr context) : context_(std::move(context)) {}

  // Aligned to a cache line. Throws CudaError if there is no memory.
  void* take(std::size_t bytes) {
    bytes = (bytes + kLine - 1) / kLine * kLine;
    while (chunk_ < chunks_.size() && chunks_[chunk_].bytes() - used_ < bytes) next();
    if (chunk_ == chunks_.size()) chunks_.emplace_back(context_, bytes > kChunk ? bytes : kChunk);
    void* piece = static_cast<char*>(chunks_[chunk_].data()) + used_;
    used_ += bytes;
    return piece;
  }
  void clear() { chunk_ = used_ = 0; }

 private:
  static constexpr std::size_t kLine = 64, kChunk = std::size_t{1} << 18;

  void next() {
    ++chunk_;
    used_ = 0;
  }

  ContextPtr context_;
  std::vector<HostBuffer> chunks_;
  std::size_t chunk_ = 0, used_ = 0;
};

}  // namespace stepfuse::cuda
