#include "graph.h"

namespace stepfuse::cuda {

namespace {

// The driver knows all memory but the host's pageable memory, which may hold anything when a graph is replayed.
bool is_pageable(const Driver& driver, const CUDA_MEMCPY3D_v2::Side& side) {
  if (side.type != CU_MEMORYTYPE_HOST && side.type != CU_MEMORYTYPE_UNIFIED) return false;
  const auto address = side.type == CU_MEMORYTYPE_HOST ? reinterpret_cast<CUdeviceptr>(side.host) : side.device;
  CUmemorytype type{};
  return driver.cuPointerGetAttribute.result(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, address) != CUDA_SUCCESS;
}

void find_unrepeatable(const Driver& driver, CUgraph graph, std::vector<std::string>& found) {
  std::size_t count = 0;
  driver.cuGraphGetNodes(graph, nullptr, &count);
  std::vector<CUgraphNode> nodes(count);
  if (count > 0) driver.cuGraphGetNodes(graph, nodes.data(), &count);
  for (CUgraphNode node : nodes) {
    CUgraphNodeType type{};
    driver.cuGraphNodeGetType(node, &type);
    if (type == CU_GRAPH_NODE_TYPE_GRAPH) {
      CUgraph child = nullptr;
      driver.cuGraphChildGraphNodeGetGraph(node, &child);
      find_unrepeatable(driver, child, found);
    } else if (type == CU_GRAPH_NODE_TYPE_MEMCPY) {
      CUDA_MEMCPY3D_v2 copy{};
      driver.cuGraphMemcpyNodeGetParams(node, &copy);
      if (is_pageable(driver, copy.from)) found.push_back("copy from pageable memory");
      if (is_pageable(driver, copy.to)) found.push_back("copy to pageable memory");
    } else if (type == CU_GRAPH_NODE_TYPE_HOST) {
      found.push_back("call of the host");
    } else if (type == CU_GRAPH_NODE_TYPE_MEM_ALLOC || type == CU_GRAPH_NODE_TYPE_MEM_FREE) {
      found.push_back("allocation");
    }
  }
}

}  // namespace

Graph::Graph(ContextPtr context) : context_(context) {
  const Context::Scope scope(*context);
  CUgraph graph = nullptr;
  context->driver().cuGraphCreate(&graph, 0);
  graph_ = {std::move(context), graph};
}

Graph Graph::borrow(ContextPtr context, CUgraph graph) {
  Graph borrowed;
  borrowed.context_ = std::move(context);
  borrowed.borrowed_ = graph;
  return borrowed;
}

CUgraphNode Graph::add_kernel(After after, const Launch& launch) {
  const Context::Scope scope(*context_);
  std::vector<void*> pointers;
  const CUDA_KERNEL_NODE_PARAMS_v2 params = launch.params(pointers);
  CUgraphNode node = nullptr;
  context_->driver().cuGraphAddKernelNode(&node, get(), after ? &after : nullptr, after ? 1 : 0, &params);
  return node;
}

CUgraphNode Graph::add_child(After after, const Graph& child) {
  const Context::Scope scope(*context_);
  CUgraphNode node = nullptr;
  context_->driver().cuGraphAddChildGraphNode(&node, get(), after ? &after : nullptr, after ? 1 : 0, child.get());
  return node;
}

CUgraphConditionalHandle Graph::make_condition() {
  context_->driver().require(kWhileNodes);
  const Context::Scope scope(*context_);
  CUgraphConditionalHandle condition = 0;
  context_->driver().cuGraphConditionalHandleCreate(&condition, get(), context_->handle(), 0,
                                                    CU_GRAPH_COND_ASSIGN_DEFAULT);
  return condition;
}

Graph::While Graph::add_while(After after, CUgraphConditionalHandle condition) {
  context_->driver().require(kWhileNodes);
  const Context::Scope scope(*context_);
  CUgraphNodeParams params{};
  params.type = CU_GRAPH_NODE_TYPE_CONDITIONAL;
  params.conditional.handle = condition;
  params.conditional.type = CU_GRAPH_COND_TYPE_WHILE;
  params.conditional.size = 1;
  params.conditional.ctx = context_->handle();
  CUgraphNode node = nullptr;
  context_->driver().cuGraphAddNode(&node, get(), after ? &after : nullptr, after ? 1 : 0, &params);
  return {node, params.conditional.phGraph_out[0]};
}

std::vector<std::string> Graph::unrepeatable() const {
  const Context::Scope scope(*context_);
  std::vector<std::string> found;
  find_unrepeatable(context_->driver(), get(), found);
  return found;
}

Capture::Capture(const Stream& stream) : context_(stream.context()), stream_(stream.get()) {
  turn_.emplace(stream);
  const Context::Scope scope(*context_);
  context_->driver().cuStreamBeginCapture(stream_, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL);
  held_.emplace();
}

Capture::~Capture() {
  if (!active_) return;
  context_->quietly([this](const Driver& driver) {
    CUgraph graph = nullptr;
    // Its result is that of the capture, which is given up; a capture that has become invalid leaves no graph.
    driver.cuStreamEndCapture.result(stream_, &graph);
    return graph ? driver.cuGraphDestroy.result(graph) : CUDA_SUCCESS;
  });
}

Graph Capture::end() {
  const Context::Scope scope(*context_);
  active_ = false;
  CUgraph graph = nullptr;
  context_->driver().cuStreamEndCapture(stream_, &graph);
  held_.reset();
  turn_.reset();
  Graph captured;
  captured.context_ = context_;
  captured.graph_ = {context_, graph};
  return captured;
}

GraphExec::GraphExec(const Graph& graph) {
  const Context::Scope scope(*graph.context());
  CUgraphExec exec = nullptr;
  graph.context()->driver().cuGraphInstantiateWithFlags(&exec, graph.get(), 0);
  exec_ = {graph.context(), exec};
}

void GraphExec::upload(const Stream& stream) const {
  const Stream::Turn turn(stream);
  const Context::Scope scope(*exec_.context());
  exec_.driver().cuGraphUpload(exec_.get(), stream.get());
}

void GraphExec::launch(const Stream& stream) const {
  const Stream::Turn turn(stream);
  const Context::Scope scope(*exec_.context());
  exec_.driver().cuGraphLaunch(exec_.get(), stream.get());
}

}  // namespace stepfuse::cuda
