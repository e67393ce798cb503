// Graphs: captured from a stream or built node by node, then instantiated and launched as a whole.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "module.h"

namespace stepfuse::cuda {

class Graph {
 public:
  // The node that comes before; null: none.
  using After = CUgraphNode;

  explicit Graph(ContextPtr context);                      // empty
  static Graph borrow(ContextPtr context, CUgraph graph);  // of another owner, such as torch's raw_cuda_graph()

  CUgraphNode add_kernel(After after, const Launch& launch);
  CUgraphNode add_child(After after, const Graph& child);  // a copy of it

  struct While {
    CUgraphNode node;
    CUgraph body;  // owned by the node: what is added to it runs while the condition holds
  };
  // Needs kWhileNodes. The condition is 0 at every launch until a kernel that comes before sets it.
  CUgraphConditionalHandle make_condition();
  While add_while(After after, CUgraphConditionalHandle condition);

  // What of the graph a trajectory cannot repeat, in words, a node each: copies from or to the host's pageable memory,
  // which may hold anything by then; calls of the host, which often release what is used once, and which a loop's body
  // may not hold; allocations, which a child graph may not hold.
  std::vector<std::string> unrepeatable() const;

  CUgraph get() const { return borrowed_ ? borrowed_ : graph_.get(); }
  const ContextPtr& context() const { return context_; }

 private:
  friend class Capture;
  Graph() = default;

  ContextPtr context_;
  Owned<CUgraph, &Driver::cuGraphDestroy> graph_;
  CUgraph borrowed_ = nullptr;
};

// From construction on what is enqueued on the stream is recorded, not run; `end` returns the graph. Until then it is
// this thread's turn. Others may use the driver as they like meanwhile, and what this one lets go of is released
// afterwards. Without `end`, when something threw, the recording is dropped and the stream is usable.
class Capture {
 public:
  explicit Capture(const Stream& stream);
  ~Capture();
  Capture(const Capture&) = delete;
  Capture& operator=(const Capture&) = delete;

  Graph end();

 private:
  ContextPtr context_;
  CUstream stream_;
  bool active_ = true;
  std::optional<Stream::Turn> turn_;
  std::optional<HeldReleases> held_;
};

class GraphExec {
 public:
  explicit GraphExec(const Graph& graph);

  void upload(const Stream& stream) const;  // so that the first launch does not have to
  void launch(const Stream& stream) const;
  CUgraphExec get() const { return exec_.get(); }

 private:
  Owned<CUgraphExec, &Driver::cuGraphExecDestroy> exec_;
};

}  // namespace stepfuse::cuda
