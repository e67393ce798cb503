// A static batch as one graph: S times a forward and a step, launched once. Nothing waits for the host until the
// result. A step is a kernel, or a few in a row (StepProgram).
//
// Unrolled, every step is nodes of its own, which read their frame where it lies: S copies of the forward's graph, each
// of the smallest bucket that has the rows. As a loop, one forward, one step and `stepfuse_advance`, which loads the
// next frame: the graph has the size of one step, and runs any number of steps up to those planned.
//
// What depends on the whole of a sample is folded into the rows of the current frame, which a loop fills anew
// for each step and which unrolled steps use for nothing else: frames stay as they were loaded, and a trajectory may be
// launched again.
#pragma once

#include <map>

#include "frames.h"
#include "graph.h"
#include "memory.h"
#include "step_program.h"

namespace stepfuse::cuda {

enum class Form : std::uint8_t {
  Unrolled,
  While,  // needs kWhileNodes
};

enum class NodeKind : std::uint8_t {
  Begin,    // the first frame becomes the current one
  Loop,     // runs its body while frames are left
  Forward,  // the network
  Step,     // the kernels of a step
  Advance,  // the next frame becomes the current one
};

struct PlannedNode {
  NodeKind kind;
  bool in_body;  // of the loop
  int after;     // index of the node that comes before; -1: the first of its graph
  int rows;      // of a forward: the bucket; else 0
  int frame;     // of a step: which one it reads; -1: the current one
};

struct TrajectoryPlan {
  Form form;
  int slots, steps;
  bool second;                    // whether frames have second lines
  bool flags;                     // whether it has flags of what is not finite
  std::vector<int> forward_rows;  // (steps,) rows that each step's forward computes
  std::vector<PlannedNode> nodes;
  std::size_t device_bytes;  // state of the loop, flags, all frames, the current frame
  std::size_t host_bytes;    // pinned, for the upload of all but the current frame
};

// `forward_rows` is Frames::forward_rows, `buckets` the row counts of the captured forwards. `flags`: each step reports
// which of its slots are not finite. Throws std::invalid_argument if a step needs more rows than the largest has, or a
// loop, whose steps are the same nodes, is to have flags.
TrajectoryPlan plan_trajectory(Form form, int slots, const std::vector<int>& forward_rows,
                               const std::vector<int>& buckets, bool second = false, bool flags = false);

class Trajectory {
 public:
  // `needs` is what any frames that are loaded may need. `arguments` are the step's but those that frames hold;
  // `forwards` captured graphs by their rows, all of which read and write the first rows of the same buffers. Copies
  // are kept of the graphs, not of the memory they use. Throws std::invalid_argument if a kernel, an argument or a
  // forward is missing.
  Trajectory(ContextPtr context, TrajectoryPlan plan, StepProgram program, const StepNeeds& needs,
             StepArguments arguments, const std::map<int, const Graph*>& forwards);

  // Sets the frames of the next launches. On the stream that launches, so that it is ordered after the launch before.
  // Waits for a previous upload alone. Throws std::invalid_argument if the frames are not of this plan, or need what
  // this trajectory was built without, or memory that its arguments lack.
  void load(const Stream& stream, const Frames& frames);
  // The same by way of the caller's pinned memory, of plan().host_bytes, which is read until the launch begins.
  void load(const Stream& stream, const Frames& frames, void* pinned);
  void launch(const Stream& stream) const;  // one launch; the first input rows are in place
  // Copies the flags of the last launch, (steps, slots) int32, to pinned memory: 1 where a step's prediction or state
  // is not finite. Of a plan with flags.
  void download_flags(const Stream& stream, void* pinned) const;

  const TrajectoryPlan& plan() const { return plan_; }

 private:
  std::size_t flag_bytes() const;
  CUdeviceptr frame_address(int frame) const;  // -1: the current one
  std::vector<Launch> step_launches(int frame) const;
  Launch advance_launch(CUgraphConditionalHandle condition, bool first) const;
  Graph build(const std::map<int, const Graph*>& forwards) const;
  void require_fits(const Frames& frames) const;

  ContextPtr context_;
  TrajectoryPlan plan_;
  FrameLayout layout_;
  StepProgram program_;
  StepNeeds needs_;
  StepArguments arguments_;
  std::unique_ptr<Module> advance_module_;  // of a loop
  DeviceBuffer device_;
  std::unique_ptr<HostBuffer> host_;  // of loads without the caller's: of a plan with flags from the first one on
  Event uploaded_;
  bool loaded_ = false;
  GraphExec exec_;
};

}  // namespace stepfuse::cuda
