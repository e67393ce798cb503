// Which row counts get a graph of their own, and what that costs. Pure; memory is known before anything is captured.
#pragma once

#include <cstddef>
#include <functional>
#include <vector>

namespace stepfuse::cuda {

// A forward of so many rows. Graphs never run at once, so they share one pool, which the largest of them fills.
struct Bucket {
  int rows;
  std::size_t pool_bytes;  // what its forward works in
  std::size_t own_bytes;   // what it keeps besides: the graph itself, its buffers
};

struct Budget {
  std::vector<Bucket> kept;  // the largest first
  std::size_t bytes;         // of these
};

// 1, 2, 3, 4, 6, 8, 12 and so on, and `max_rows` itself, the largest first: a forward is padded by less than half.
std::vector<int> bucket_rows(int max_rows);

// The smallest bucket of at least `rows`; -1 if there is none. `buckets` in any order.
int bucket_for(const std::vector<int>& buckets, int rows);

// Drops the largest bucket until the rest fits. Throws std::invalid_argument if not even the smallest does.
Budget plan_budget(std::vector<Bucket> buckets, std::size_t available_bytes);

// Captures bucket by bucket, the largest first, and returns those that were captured. `capture` returns false if there
// was no memory for it: that bucket is dropped, and the next smaller one tried. What it throws passes through.
std::vector<int> capture_buckets(std::vector<int> buckets, const std::function<bool(int rows)>& capture);

}  // namespace stepfuse::cuda
