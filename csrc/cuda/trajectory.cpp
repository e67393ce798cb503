#include "trajectory.h"

#include <algorithm>
#include <cstring>

#include "budget.h"

namespace stepfuse::cuda {

namespace {

constexpr char kAdvance[] =
#include "advance.ptx.inl"
    ;
constexpr unsigned kAdvanceThreads = 256;
constexpr std::size_t kStateWords = 16;  // which frame, of how many; the rest keeps frames on cache lines

constexpr std::size_t kFlags = kStateWords * sizeof(std::uint32_t);  // where they begin, in bytes

// Words before the first frame: the state and the flags, on whole cache lines.
std::size_t head_words(int slots, int steps, bool flags) {
  const auto count = flags ? static_cast<std::size_t>(slots) * static_cast<std::size_t>(steps) : 0;
  return kStateWords + (count + kStateWords - 1) / kStateWords * kStateWords;
}

int bucket_of(const std::vector<int>& buckets, int rows) {
  const int bucket = bucket_for(buckets, rows);
  if (bucket >= 0) return bucket;
  const int largest = buckets.empty() ? 0 : *std::max_element(buckets.begin(), buckets.end());
  throw std::invalid_argument("a step needs a forward of " + std::to_string(rows) + " rows, the largest has " +
                              std::to_string(largest));
}

// The kernels read frames as the plan has them.
StepNeeds with_lines_of(StepNeeds needs, const TrajectoryPlan& plan) {
  needs.second = plan.second;
  return needs;
}

}  // namespace

TrajectoryPlan plan_trajectory(Form form, int slots, const std::vector<int>& forward_rows,
                               const std::vector<int>& buckets, bool second, bool flags) {
  if (slots < 1 || forward_rows.empty()) throw std::invalid_argument("a trajectory needs a sample and a step");
  if (flags && form == Form::While) throw std::invalid_argument("flags of each step need the unrolled form");
  const int steps = static_cast<int>(forward_rows.size());
  const std::size_t words = FrameLayout(slots, second).words, all = words * static_cast<std::size_t>(steps);
  const std::size_t loaded = (head_words(slots, steps, flags) + all) * sizeof(std::uint32_t);
  TrajectoryPlan plan{form, slots, steps, second, flags, {}, {}, loaded + words * sizeof(std::uint32_t), loaded};
  if (form == Form::While) {
    const int rows = bucket_of(buckets, *std::max_element(forward_rows.begin(), forward_rows.end()));
    plan.forward_rows.assign(forward_rows.size(), rows);
    plan.nodes = {{NodeKind::Begin, false, -1, 0, -1},
                  {NodeKind::Loop, false, 0, 0, -1},
                  {NodeKind::Forward, true, -1, rows, -1},
                  {NodeKind::Step, true, 2, 0, -1},
                  {NodeKind::Advance, true, 3, 0, -1}};
    return plan;
  }
  for (int step = 0; step < steps; ++step) {
    const int rows = bucket_of(buckets, forward_rows[static_cast<std::size_t>(step)]);
    plan.forward_rows.push_back(rows);
    plan.nodes.push_back({NodeKind::Forward, false, 2 * step - 1, rows, -1});
    plan.nodes.push_back({NodeKind::Step, false, 2 * step, 0, step});
  }
  return plan;
}

Trajectory::Trajectory(ContextPtr context, TrajectoryPlan plan, StepProgram program, const StepNeeds& needs,
                       StepArguments arguments, const std::map<int, const Graph*>& forwards)
    : context_(std::move(context)),
      plan_(std::move(plan)),
      layout_(plan_.slots, plan_.second),
      program_(std::move(program)),
      needs_(with_lines_of(needs, plan_)),
      arguments_(arguments),
      advance_module_(plan_.form == Form::While ? std::make_unique<Module>(context_, kAdvance) : nullptr),
      device_(context_, plan_.device_bytes),
      host_(plan_.flags ? nullptr : std::make_unique<HostBuffer>(context_, plan_.host_bytes)),
      uploaded_(context_),
      exec_(build(forwards)) {}

// The device's memory: the loop's state, flags if there are any, the frames, and behind them the current one.
CUdeviceptr Trajectory::frame_address(int frame) const {
  const auto index = static_cast<std::size_t>(frame < 0 ? plan_.steps : frame);
  const std::size_t first = head_words(plan_.slots, plan_.steps, plan_.flags);
  return device_.get() + (first + layout_.words * index) * sizeof(std::uint32_t);
}

std::size_t Trajectory::flag_bytes() const { return static_cast<std::size_t>(plan_.slots) * sizeof(std::int32_t); }

std::vector<Launch> Trajectory::step_launches(int frame) const {
  StepArguments arguments = arguments_;
  arguments.set(StepArgument::adapted, frame_address(-1) + layout_.rows * sizeof(std::uint32_t));
  if (plan_.flags)
    arguments.set(StepArgument::nonfinite, device_.get() + kFlags + static_cast<std::size_t>(frame) * flag_bytes());
  return program_.launches(plan_.slots, needs_, arguments, frame_address(frame));
}

Launch Trajectory::advance_launch(CUgraphConditionalHandle condition, bool first) const {
  return {advance_module_->function("stepfuse_advance"),
          {1, 1, 1},
          {kAdvanceThreads, 1, 1},
          0,
          {condition, device_.get(), frame_address(0), frame_address(-1), layout_.words, first}};
}

Graph Trajectory::build(const std::map<int, const Graph*>& forwards) const {
  Graph graph(context_);
  Graph body = Graph::borrow(context_, nullptr);
  CUgraphConditionalHandle condition = plan_.form == Form::While ? graph.make_condition() : 0;
  std::vector<CUgraphNode> built;
  for (const PlannedNode& node : plan_.nodes) {
    Graph& into = node.in_body ? body : graph;
    const Graph::After after = node.after < 0 ? nullptr : built[static_cast<std::size_t>(node.after)];
    switch (node.kind) {
      case NodeKind::Begin:
      case NodeKind::Advance:
        built.push_back(into.add_kernel(after, advance_launch(condition, node.kind == NodeKind::Begin)));
        break;
      case NodeKind::Loop: {
        const Graph::While loop = into.add_while(after, condition);
        body = Graph::borrow(context_, loop.body);
        built.push_back(loop.node);
        break;
      }
      case NodeKind::Forward: {
        const auto found = forwards.find(node.rows);
        if (found == forwards.end())
          throw std::invalid_argument("there is no forward of " + std::to_string(node.rows) + " rows");
        built.push_back(into.add_child(after, *found->second));
        break;
      }
      case NodeKind::Step: {
        CUgraphNode last = after;
        for (const Launch& launch : step_launches(node.frame)) last = into.add_kernel(last, launch);
        built.push_back(last);
        break;
      }
    }
  }
  return graph;
}

void Trajectory::require_fits(const Frames& frames) const {
  const bool steps_fit = plan_.form == Form::While ? frames.steps <= plan_.steps : frames.steps == plan_.steps;
  if (frames.slots != plan_.slots || !steps_fit)
    throw std::invalid_argument("this trajectory is of " + std::to_string(plan_.slots) + " samples and " +
                                (plan_.form == Form::While ? "at most " : "") + std::to_string(plan_.steps) +
                                " steps, got " + std::to_string(frames.slots) + " and " + std::to_string(frames.steps));
  if (frames.needs.second != plan_.second)
    throw std::invalid_argument(std::string("this trajectory is of tables ") + (plan_.second ? "with" : "without") +
                                " a second line");
  for (std::size_t step = 0; step < frames.forward_rows.size(); ++step)
    if (frames.forward_rows[step] > plan_.forward_rows[step])
      throw std::invalid_argument("step " + std::to_string(step) + " of this trajectory has " +
                                  std::to_string(plan_.forward_rows[step]) + " rows, got " +
                                  std::to_string(frames.forward_rows[step]));
  const auto require = [&](bool needed, bool built, const char* what, StepArgument memory) {
    if (!needed) return;
    if (!built) throw std::invalid_argument(std::string(what) + ", which this trajectory was built without");
    if (!arguments_.has(memory) || arguments_.at(memory) == 0)
      throw std::invalid_argument(std::string(what) + ": " + name_of(memory) + " must be memory, got none");
  };
  require(frames.needs.noise, needs_.noise, "a step adds noise", StepArgument::seed);
  require(frames.needs.guidance, needs_.guidance, "a step adapts its guidance", StepArgument::sums);
  require(frames.needs.renorm, needs_.renorm, "a step renorms its guidance", StepArgument::prediction);
  require(frames.needs.threshold, needs_.threshold, "a step has a dynamic threshold", StepArgument::counts);
  require(frames.needs.keep, needs_.keep, "a step keeps a part of an image", StepArgument::known);
  constexpr StepArgument kRegisters[] = {StepArgument::h, StepArgument::h2, StepArgument::h3};
  for (int i = 0; i < frames.registers; ++i) require(true, true, "a step uses history", kRegisters[i]);
}

void Trajectory::load(const Stream& stream, const Frames& frames) {
  require_fits(frames);
  if (!host_) host_ = std::make_unique<HostBuffer>(context_, plan_.host_bytes);
  if (loaded_) uploaded_.synchronize();  // of an upload that is still to read the host's memory
  load(stream, frames, host_->data());
  stream.record(uploaded_);
}

void Trajectory::load(const Stream& stream, const Frames& frames, void* pinned) {
  require_fits(frames);
  if (!loaded_) exec_.upload(stream);  // before it is launched for the first time, which would have to
  const std::size_t head = head_words(plan_.slots, plan_.steps, plan_.flags);
  auto* words = static_cast<std::uint32_t*>(pinned);
  std::fill(words, words + head, 0u);
  words[1] = static_cast<std::uint32_t>(frames.steps);
  std::memcpy(words + head, frames.words.data(), frames.words.size() * sizeof(std::uint32_t));
  device_.upload(stream, words, (head + frames.words.size()) * sizeof(std::uint32_t));
  loaded_ = true;
}

void Trajectory::launch(const Stream& stream) const {
  if (!loaded_) throw std::logic_error("a trajectory must be loaded before it is launched");
  exec_.launch(stream);
}

void Trajectory::download_flags(const Stream& stream, void* pinned) const {
  if (!plan_.flags) throw std::logic_error("this trajectory was planned without flags");
  device_.download(stream, pinned, static_cast<std::size_t>(plan_.steps) * flag_bytes(), kFlags);
}

}  // namespace stepfuse::cuda
