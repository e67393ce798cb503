#include "pieces.h"

#include <algorithm>
#include <utility>

namespace stepfuse::cuda {

Pieces::Pieces(const Stream& stream, StepProgram program, std::map<int, std::shared_ptr<const Graph>> forwards)
    : stream_(stream.shared()), program_(std::move(program)), forwards_(std::move(forwards)) {}

Pieces::Piece& Pieces::piece(const Key& key) {
  const auto same = [&](const Piece& one) { return one.key == key; };
  const auto found = std::find_if(pieces_.begin(), pieces_.end(), same);
  return found != pieces_.end() ? *found : pieces_.emplace_back(Piece{key});
}

Trajectory* Pieces::find(const Key& key, const StepArguments& arguments) {
  if (!any()) return nullptr;
  Piece& found = piece(key);
  found.used = ++uses_;
  if (found.built && found.arguments == arguments) return found.built.get();
  if (++found.asked > kAskedBefore) wanted_ = key;
  return nullptr;
}

void Pieces::make_room() {
  const auto older = [](const Piece& a, const Piece& b) {
    return std::pair(a.built == nullptr, a.used) < std::pair(b.built == nullptr, b.used);
  };
  const auto kept =
      std::count_if(pieces_.begin(), pieces_.end(), [](const Piece& one) { return one.built != nullptr; });
  if (static_cast<std::size_t>(kept) < kKept) return;
  Piece& oldest = *std::min_element(pieces_.begin(), pieces_.end(), older);
  oldest.built.reset();
  oldest.asked = 0;
}

void Pieces::build(const StepArguments& arguments) {
  const Key key = *std::exchange(wanted_, std::nullopt);
  Piece& wanted = piece(key);
  wanted.built.reset();  // over memory that has moved since
  make_room();
  std::vector<int> buckets;
  std::map<int, const Graph*> forwards;
  for (const auto& [rows, graph] : forwards_) {
    buckets.push_back(rows);
    forwards[rows] = graph.get();
  }
  try {
    const std::vector<int> rows(kSteps, key.rows);
    TrajectoryPlan plan = plan_trajectory(Form::Unrolled, key.slots, rows, buckets, key.needs.second, true);
    wanted.built =
        std::make_unique<Trajectory>(stream_.context(), std::move(plan), program_, key.needs, arguments, forwards);
  } catch (const CudaError& error) {
    enabled_ = false;
    if (!error.out_of_memory()) throw;
    pieces_.clear();
    return;
  }
  wanted.arguments = arguments;
  wanted.asked = 0;
}

}  // namespace stepfuse::cuda
