// Numbers of slots, which samples take and give back: always the lowest free one.
#pragma once

#include <algorithm>
#include <vector>

namespace stepfuse {

class Slots {
 public:
  int take() {
    const auto free = std::find(taken_.begin(), taken_.end(), false);
    const auto slot = static_cast<int>(free - taken_.begin());
    if (free == taken_.end()) taken_.push_back(false);
    taken_[static_cast<std::size_t>(slot)] = true;
    return slot;
  }
  void give_back(int slot) {
    taken_[static_cast<std::size_t>(slot)] = false;
    while (!taken_.empty() && !taken_.back()) taken_.pop_back();
  }
  int end() const { return static_cast<int>(taken_.size()); }  // the highest number taken, plus 1

 private:
  std::vector<bool> taken_;
};

}  // namespace stepfuse
