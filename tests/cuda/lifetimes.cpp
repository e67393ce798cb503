// Whole lives of a trajectory on the recording driver, each with another call of it failing, under the sanitizers: what
// failed is told, and nothing is left, used after its release or released twice.
//
//   lifetimes PATH_OF_THE_FAKE_DRIVER
//
// Without a driver it only starts and ends.
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "../../csrc/cuda/trajectory.h"

using namespace stepfuse;
using namespace stepfuse::cuda;

namespace {

struct Fake {
  void (*reset)();
  void (*fail)(int, int);
  int (*calls)();
  const char* (*text)(int);
};

template <class Function>
void find(void* library, const char* name, Function*& function) {
  function = reinterpret_cast<Function*>(dlsym(library, name));
  if (!function) std::abort();
}

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

void live(const std::string& path, Form form) {
  const ContextPtr context = Context::open(Driver::load(path), 0);
  const Stream stream(context);
  DeviceBuffer x(context, 4096);
  const auto module = std::make_shared<Module>(context, "step 6\nnetwork 0\n");
  const auto kernel = std::make_shared<StepKernel>(module, "step", kSignature);
  const StepProgram program({{{1, kernel}}, {}, kernel, kernel, kernel, kernel});

  Capture capture(stream);
  launch(stream, {module->function("network"), {1, 1, 1}, {32, 1, 1}, 0, {}});
  const Graph forward = capture.end();

  StepRow row{};
  row.g = 1;
  const Adaptive adaptive{0.5f, 0.9f, 2.0f};
  const Frames frames = make_frames({{{row, row, row}, true}, {{row}, true, adaptive, {{0, 1}, {1, 0}}}});
  const TrajectoryPlan plan = plan_trajectory(form, frames.slots, frames.forward_rows, {2});
  const Values values{{"x", x.get()}, {"n", 500}, {"sums", x.get()}, {"known", x.get()}};
  Trajectory trajectory(context, plan, program, {false, true, true, true}, values, {{2, &forward}});
  for (int i = 0; i < 2; ++i) {
    trajectory.load(stream, frames);
    trajectory.launch(stream);
  }

  Graph single(context);
  const Launch first{module->function("network"), {1, 1, 1}, {32, 1, 1}, 0, {}};
  CUgraphNode node = single.add_kernel(nullptr, first);
  GraphExec exec(single);
  exec.set_kernel(node, {first.function, {7, 1, 1}, {64, 1, 1}, 0, {}});
  exec.upload(stream);
  exec.launch(stream);
  stream.synchronize();
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 2) return 0;
  void* library = dlopen(arguments[1], RTLD_NOW);
  if (!library) return 2;
  Fake fake{};
  find(library, "fake_reset", fake.reset);
  find(library, "fake_fail", fake.fail);
  find(library, "fake_calls", fake.calls);
  find(library, "fake_text", fake.text);
  for (const Form form : {Form::Unrolled, Form::While}) {
    fake.reset();
    live(arguments[1], form);
    const int calls = fake.calls();
    int told = 0;
    for (int at = 0; at <= calls; ++at) {
      fake.reset();
      fake.fail(at, CUDA_ERROR_OUT_OF_MEMORY);
      try {
        live(arguments[1], form);
      } catch (const CudaError& error) {
        ++told;
        require(error.out_of_memory(), error.what(), at);
      }
      require(!*fake.text(1), fake.text(1), at);
      require(!*fake.text(2), fake.text(2), at);
    }
    fake.reset();
    // All but the releases behind the last call, of which there are at most as many as things made.
    require(told > calls / 2, "too few failures were told", calls);
    std::printf("%d calls, %d failures told\n", calls, told);
  }
}
