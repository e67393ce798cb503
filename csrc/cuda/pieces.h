// Several steps in a row of the same samples, in the same rows, as one graph, forwards included: what the loop enqueues
// while no request joins or leaves. A piece is an unrolled trajectory (trajectory.h) that is loaded with other frames
// for each launch.
//
// Building a graph takes as long as some forwards, so that a piece is built only when it has been asked for often, and
// what occurs rarely is stepped one by one.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "../core/loop/stepper.h"
#include "trajectory.h"

namespace stepfuse::cuda {

class Pieces {
 public:
  static constexpr int kSteps = kMostAhead / 2;  // the host enqueues one while the device runs another
  static constexpr int kAskedBefore = 16;        // how often, until one is built
  static constexpr std::size_t kKept = 8;        // beyond that the one goes that was not used for longest

  // What a graph is built for.
  struct Key {
    int slots, rows;  // of its frames and of its forwards
    StepNeeds needs;
    bool previews;

    bool operator==(const Key& other) const {
      return slots == other.slots && rows == other.rows && needs == other.needs && previews == other.previews;
    }
  };

  // The captured forwards by their rows; with none there are no pieces. The stream is borrowed.
  Pieces(const Stream& stream, StepProgram program, std::map<int, std::shared_ptr<const Graph>> forwards);

  bool any() const { return enabled_ && !forwards_.empty(); }
  // The piece over memory with these arguments; null: there is none, or not yet.
  Trajectory* find(const Key& key, const StepArguments& arguments);
  // What `build` should be called for: asked for often enough, and not there.
  const std::optional<Key>& wanted() const { return wanted_; }
  // Where memory does not suffice there are no pieces from then on. Throws CudaError for any other reason.
  void build(const StepArguments& arguments);

 private:
  struct Piece {
    Key key;
    int asked = 0;  // times, without success
    std::uint64_t used = 0;
    StepArguments arguments{};
    std::unique_ptr<Trajectory> built{};
  };

  Piece& piece(const Key& key);
  void make_room();

  Stream stream_;
  StepProgram program_;
  std::map<int, std::shared_ptr<const Graph>> forwards_;
  std::vector<Piece> pieces_;  // all that were asked for: few, since slots and rows are of few numbers
  std::optional<Key> wanted_;
  std::uint64_t uses_ = 0;
  bool enabled_ = true;
};

}  // namespace stepfuse::cuda
