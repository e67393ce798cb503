// The network as captured forwards: a forward launches the smallest captured one that has enough rows.
#pragma once

#include <map>
#include <vector>

#include "../core/loop/denoiser.h"
#include "graph.h"

namespace stepfuse::cuda {

class GraphDenoiser final : public Denoiser {
 public:
  // The graphs by their rows; the stream is borrowed.
  GraphDenoiser(const Stream& stream, const std::map<int, const Graph*>& forwards);

  // Returns before the predictions are there. Throws std::invalid_argument if no graph has so many rows or there are
  // adapters, which captured graphs have none of, and CudaError.
  void forward(int rows, std::uint64_t adapters) override;
  int computed(int rows) const override { return forwards_.lower_bound(rows)->first; }

 private:
  Stream stream_;
  std::map<int, GraphExec> forwards_;
};

}  // namespace stepfuse::cuda
