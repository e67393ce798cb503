// Whole lives of a trajectory, and of a loop, on the recording driver, each with another call of it failing, under the
// sanitizers: the failure is reported, and nothing is leaked, used after its release or released twice.
//
//   lifetimes PATH_OF_THE_FAKE_DRIVER
//
// Without a driver it does nothing.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

#include "../../csrc/core/loop/invariants.h"
#include "../../csrc/core/loop/loop.h"
#include "../../csrc/cuda/device_stepper.h"
#include "../../csrc/cuda/graph_denoiser.h"
#include "../../csrc/cuda/trajectory.h"
#include "fake.h"

using namespace stepfuse;
using namespace stepfuse::cuda;

namespace {

void require(bool holds, const char* what, int at) {
  if (holds) return;
  std::fprintf(stderr, "%s, with call %d failing\n", what, at);
  std::exit(1);
}

const KernelSignature kSignature{{{"x", ArgumentType::Pointer, true},
                                  {"rows", ArgumentType::Pointer, false},
                                  {"n", ArgumentType::Int32, false},
                                  {"rows_stride", ArgumentType::Int32, false},
                                  {"next_rows_stride", ArgumentType::Int32, false},
                                  {"null", ArgumentType::Pointer, false}},
                                 256,
                                 2,
                                 0};

constexpr Adaptive kAdaptive{{0.5f, Blend::ProjectedClean, 0.2f, 1.0f}, 0.9f, 2.0f, {}};

// A stream, a step of every kind, and a network.
struct Rig {
  explicit Rig(const std::string& path) : context(Context::open(Driver::load(path), 0)), stream(context) {}

  StepProgram program() const {
    return StepProgram({{{1, kernel}}, {{1, kernel}}, {{1, kernel}}, kernel, kernel, kernel, kernel, kernel, kernel});
  }
  Graph forward() const {
    Capture capture(stream);
    launch(stream, {module->function("network"), {1, 1, 1}, {32, 1, 1}, 0, {}});
    return capture.end();
  }

  ContextPtr context;
  Stream stream;
  std::shared_ptr<Module> module = std::make_shared<Module>(context, "step 6\nnetwork 0\n");
  std::shared_ptr<StepKernel> kernel = std::make_shared<StepKernel>(module, "step", kSignature);
};

StepRow noisy_row() {
  StepRow row{};
  row.g = 3;
  row.q_h = row.u_e = row.q_z = 1;
  return row;
}

// A loop whose samples join, have previews, wait for a gate, have known regions and are cancelled, and of which there
// are more than the slots that it begins with. The last one is alone so long that several of its steps are one launch;
// whether they were.
bool draw(const std::string& path) {
  constexpr std::int64_t kElements = 20;
  const Rig rig(path);
  DeviceBuffer rows(rig.context, 4096);
  const auto forward = std::make_shared<const Graph>(rig.forward());
  GraphDenoiser denoiser(rig.stream, {{4, forward.get()}});
  DeviceRows memory{{rows.get(), rows.get() + 1024, rows.get() + 2048},
                    kElements * sizeof(float),
                    {{rows.get() + 3072, Stored::Float32AsFloat16}}};
  const ModelSpec spec{kElements, TimestepType::Float32, {8}, 4};
  Loop loop(std::make_unique<DeviceStepper>(rig.stream, spec, std::move(memory), rig.program(),
                                            std::map<int, std::shared_ptr<const Graph>>{{4, forward}}),
            LoopOptions{8, {}});
  Stepper& stepper = loop.stepper();

  const auto plain = std::make_shared<Table>(std::vector<StepRow>(3, StepRow{}), 1.0f);
  const auto rich = std::make_shared<Table>(std::vector<StepRow>(4, noisy_row()), 1.0f, kAdaptive);
  const auto alone = std::make_shared<Table>(std::vector<StepRow>(26, StepRow{}), 1.0f);
  std::vector<float> states(8 * kElements), previews(states.size()), image(kElements, 0.5f);
  const std::array<float, 2> cond{1, 2};
  const auto known =
      std::make_shared<const KnownRegion>(KnownRegion{image.data(), image.data(), std::vector<Level>(5)});
  const auto gate = std::make_shared<Gate>();
  const auto submit = [&](std::uint64_t id, double now) {
    Request request{};
    const bool is_rich = id % 2 == 1;
    request.id = id;
    request.table = id == 7 ? alone : is_rich ? rich : plain;
    request.x = &states[id * kElements];
    request.cond = {cond.data()};
    request.null_cond = {cond.data()};
    if (request.table == rich) request.known_region = known;
    if (id == 3) request.x0 = &previews[id * kElements];
    request.watched = id == 3;
    if (id == 4) request.gate = gate;
    loop.submit(std::move(request), now);
  };
  std::exception_ptr first;
  bool extended = false;
  for (int iteration = 0; iteration < 60; ++iteration) {
    if (iteration < 7 || iteration == 30) submit(static_cast<std::uint64_t>(std::min(iteration, 7)), iteration);
    if (iteration == 4) loop.cancel(2);
    loop.open(*gate);
    if (loop.prepare(iteration)) {
      std::exception_ptr error;
      try {
        stepper.throttle();
        if (loop.extend())
          extended = true;
        else
          denoiser.forward(loop.forward_rows(), loop.forward_adapters());
      } catch (...) {
        error = std::current_exception();
      }
      if (error) {
        loop.fail(error, iteration);
      } else if (loop.step(iteration)) {
        try {
          if (stepper.needs_host_sync()) stepper.synchronize();
        } catch (...) {
          error = std::current_exception();
        }
        loop.commit(error, iteration);
      }
    }
    for (const std::string& broken : violations(loop)) throw std::logic_error(broken);
    for (const stepfuse::Event& event : loop.events())
      if (event.error && !first) first = event.error;
    loop.events().clear();
  }
  if (!loop.running().empty() || !loop.waiting().empty()) throw std::logic_error("samples are left");
  if (first) std::rethrow_exception(first);
  return extended;
}

bool live(const std::string& path, Form form) {
  const Rig rig(path);
  const auto& [context, stream, module, kernel] = rig;
  DeviceBuffer x(context, 4096);
  const StepProgram program = rig.program();
  const Graph forward = rig.forward();

  StepRow row{};
  row.g = 1;
  const Frames frames = make_frames({{{row, row, row}, true}, {{row}, true, kAdaptive, {{0, 1}, {1, 0}}}});
  const TrajectoryPlan plan = plan_trajectory(form, frames.slots, frames.forward_rows, {2});
  StepArguments arguments;
  for (const StepArgument memory : {StepArgument::x, StepArgument::sums, StepArgument::counts, StepArgument::known})
    arguments.set(memory, x.get());
  arguments.set(StepArgument::n, 500);
  Trajectory trajectory(context, plan, program, {false, true, true, true}, arguments, {{2, &forward}});
  for (int i = 0; i < 2; ++i) {
    trajectory.load(stream, frames);
    trajectory.launch(stream);
  }

  Graph single(context);
  const Launch first{module->function("network"), {1, 1, 1}, {32, 1, 1}, 0, {}};
  single.add_kernel(nullptr, first);
  GraphExec exec(single);
  exec.upload(stream);
  exec.launch(stream);
  stream.synchronize();
  return true;
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 2) return 0;
  const std::string path = arguments[1];
  const Fake fake(path);
  const std::function<bool()> lives[] = {[&] { return live(path, Form::Unrolled); },
                                         [&] { return live(path, Form::While); }, [&] { return draw(path); },
                                         [&] {
                                           fake.late(1);
                                           return draw(path);
                                         }};
  for (const auto& life : lives) {
    fake.reset();
    require(life(), "no steps were one launch", -1);
    const int calls = fake.calls();
    int reported = 0;
    for (int at = 0; at <= calls; ++at) {
      fake.reset();
      fake.fail(at, CUDA_ERROR_OUT_OF_MEMORY);
      try {
        life();
      } catch (const CudaError& error) {
        ++reported;
        require(error.out_of_memory(), error.what(), at);
      }
      require(!*fake.text(1), fake.text(1), at);
      require(!*fake.text(2), fake.text(2), at);
    }
    fake.reset();
    // All but the releases after the last call, of which there are at most as many as objects made.
    require(reported > calls / 2, "too few failures were reported", calls);
    std::printf("%d calls, %d failures reported\n", calls, reported);
  }
}
