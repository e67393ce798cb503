#include "graph_denoiser.h"

#include <stdexcept>

namespace stepfuse::cuda {

GraphDenoiser::GraphDenoiser(const Stream& stream, const std::map<int, const Graph*>& forwards)
    : stream_(stream.shared()) {
  for (const auto& [rows, graph] : forwards) forwards_.emplace(rows, *graph).first->second.upload(stream_);
}

void GraphDenoiser::forward(int rows, std::uint64_t adapters) {
  if (adapters != 0) throw std::invalid_argument("a captured forward has no adapters");
  const auto found = forwards_.lower_bound(rows);
  if (found == forwards_.end())
    throw std::invalid_argument("a forward of " + std::to_string(rows) + " rows was not captured");
  found->second.launch(stream_);
}

}  // namespace stepfuse::cuda
