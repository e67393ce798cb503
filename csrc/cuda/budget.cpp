#include "budget.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>
#include <string>

namespace stepfuse::cuda {

namespace {

std::size_t bytes_of(const std::vector<Bucket>& buckets) {
  std::size_t pool = 0, own = 0;
  for (const Bucket& bucket : buckets) {
    pool = std::max(pool, bucket.pool_bytes);
    own += bucket.own_bytes;
  }
  return pool + own;
}

}  // namespace

std::vector<int> bucket_rows(int max_rows) {
  if (max_rows < 1) throw std::invalid_argument("max_rows must be at least 1, got " + std::to_string(max_rows));
  std::vector<int> found{max_rows};
  for (std::int64_t power = 1; power < max_rows; power *= 2) {
    found.push_back(static_cast<int>(power));
    if (power > 1 && power / 2 * 3 < max_rows) found.push_back(static_cast<int>(power / 2 * 3));
  }
  std::sort(found.begin(), found.end(), std::greater<>());
  return found;
}

int bucket_for(const std::vector<int>& buckets, int rows) {
  int best = -1;
  for (const int bucket : buckets)
    if (bucket >= rows && (best < 0 || bucket < best)) best = bucket;
  return best;
}

Budget plan_budget(std::vector<Bucket> buckets, std::size_t available_bytes) {
  if (buckets.empty()) throw std::invalid_argument("a budget needs at least one bucket");
  std::sort(buckets.begin(), buckets.end(), [](const Bucket& a, const Bucket& b) { return a.rows > b.rows; });
  Budget budget{std::move(buckets), 0};
  while ((budget.bytes = bytes_of(budget.kept)) > available_bytes) {
    if (budget.kept.size() == 1)
      throw std::invalid_argument("a forward of " + std::to_string(budget.kept[0].rows) + " rows needs " +
                                  std::to_string(budget.bytes) + " bytes, there are " +
                                  std::to_string(available_bytes) + ": free memory, or run on the CPU");
    budget.kept.erase(budget.kept.begin());
  }
  return budget;
}

std::vector<int> capture_buckets(std::vector<int> buckets, const std::function<bool(int rows)>& capture) {
  std::sort(buckets.begin(), buckets.end(), std::greater<>());
  std::vector<int> captured;
  for (const int rows : buckets)
    if (capture(rows)) captured.push_back(rows);
  return captured;
}

}  // namespace stepfuse::cuda
