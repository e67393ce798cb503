// The stress test on the recording driver, whose device does nothing before the host waits for it, in some rounds, and
// whose calls fail, in some. What the kernels do, by their documented headers, is csrc/core's own arithmetic.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <sstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "../../csrc/core/step/adapt.h"
#include "../../csrc/core/step/fused_step.h"
#include "../../csrc/core/step/known_region.h"
#include "../../csrc/core/step/noise.h"
#include "../../csrc/cuda/device_stepper.h"
#include "../../csrc/cuda/graph_denoiser.h"
#include "../core/stress_backend.h"
#include "fake.h"

namespace stepfuse {

namespace {

using namespace cuda;

constexpr char kDriver[] = "libfake.so";  // beside the program
constexpr int kBlock = 64;                // elements a tile: a whole sample

KernelSignature signature(const char* pointers, const char* integers, Grid grid) {
  KernelSignature found{{}, kBlock, 1, 0, grid};
  for (const auto& [names, type] : {std::pair(pointers, ArgumentType::Pointer), {integers, ArgumentType::Int32}}) {
    std::istringstream words(names);
    for (std::string name; words >> name;) found.arguments.push_back({name, type, false});
  }
  return found;
}

const std::map<std::string, KernelSignature> kKernels{
    {"fused_step",
     signature("x prediction rows row_cond row_uncond out h seed step x0 next_input next_rows next_cond next_uncond "
               "next_t next_t_int nonfinite",
               "n prediction_rows next_input_rows x_stride prediction_stride out_stride next_input_stride rows_stride "
               "next_rows_stride",
               Grid::Tiles)},
    {"plain_step",
     signature("x prediction rows row_cond row_uncond out h x0 next_input next_rows next_cond next_uncond next_t "
               "next_t_int nonfinite",
               "n prediction_rows next_input_rows x_stride prediction_stride out_stride next_input_stride rows_stride "
               "next_rows_stride",
               Grid::Tiles)},
    {"second_step",
     signature("x prediction rows row_cond row_uncond out h h2 h3 seed step x0 next_input next_rows next_cond "
               "next_uncond next_t next_t_int nonfinite",
               "n prediction_rows next_input_rows x_stride prediction_stride out_stride next_input_stride rows_stride "
               "next_rows_stride",
               Grid::Tiles)},
    {"guidance_sums", signature("prediction x guidance row_cond row_uncond sums",
                                "n prediction_rows x_stride prediction_stride", Grid::Tiles)},
    {"guided_rows", signature("sums rows row_cond row_uncond guidance adapted", "n tiles rows_stride", Grid::Slots)},
    {"magnitude_counts", signature("x prediction rows row_cond row_uncond ratio counts",
                                   "n shift prediction_rows x_stride prediction_stride rows_stride", Grid::Tiles)},
    {"thresholded_rows", signature("counts rows row_cond row_uncond ratio largest adapted",
                                   "n tiles shift prediction_rows rows_stride", Grid::Slots)},
    {"renormed_predictions", signature("prediction rows row_cond row_uncond patches",
                                       "n prediction_rows prediction_stride rows_stride", Grid::Tiles)},
    {"keep_known",
     signature("x known known_row levels x0 row_cond row_uncond next_input next_rows next_cond next_uncond",
               "n next_input_rows x_stride next_input_stride next_rows_stride", Grid::Tiles)},
};

// A launch's arguments by name.
class Given {
 public:
  Given(const KernelSignature& signature, void** params) : signature_(signature), params_(params) {}

  std::uint64_t word(const char* name) const {
    for (std::size_t i = 0; i < signature_.arguments.size(); ++i)
      if (signature_.arguments[i].name == name) return *static_cast<const std::uint64_t*>(params_[i]);
    return 0;  // not compiled in
  }
  bool takes(const char* name) const {
    const auto& all = signature_.arguments;
    return std::any_of(all.begin(), all.end(), [&](const KernelArgument& one) { return one.name == name; });
  }
  int integer(const char* name) const { return static_cast<int>(word(name)); }
  // Its (stride,) elements of index i; null if the argument is.
  template <class T>
  T* at(const char* name, int i = 0, std::int64_t stride = 1) const {
    auto* first = reinterpret_cast<T*>(word(name));
    return first ? first + i * stride : nullptr;
  }

 private:
  const KernelSignature& signature_;
  void** params_;
};

// What kernels read first of a slot.
struct Slot {
  Slot(const Given& given, int index)
      : i(index),
        n(given.integer("n")),
        cond(*given.at<int>("row_cond", i)),
        uncond(*given.at<int>("row_uncond", i)),
        steps(cond >= 0 || uncond >= 0),
        guided(cond >= 0 && uncond >= 0) {
    if (given.word("rows")) {
      const float* columns = given.at<float>("rows", i, given.integer("rows_stride"));
      row = line_from<StepRow>(columns);
      if (given.integer("rows_stride") > kLineColumns) second = line_from<SecondLine>(columns + kLineColumns);
    }
    if (!steps || !given.word("prediction")) return;
    const std::int64_t stride = given.integer("prediction_stride");
    require(std::max(cond, uncond) < given.integer("prediction_rows"), "a slot reads a row that is not there");
    eps = given.at<float>("prediction", cond >= 0 ? cond : uncond, stride);
    if (guided) eps_uncond = given.at<float>("prediction", uncond, stride);
  }

  int i;
  std::int64_t n;
  int cond, uncond;
  bool steps, guided;
  StepRow row{};
  SecondLine second{};
  float *eps = nullptr, *eps_uncond = nullptr;
};

// The span has the rows of the next forward that a slot's state goes to.
void aim(const Given& given, const Slot& slot, StepSpan<float>& span) {
  const int to_cond = *given.at<int>("next_cond", slot.i), to_uncond = *given.at<int>("next_uncond", slot.i);
  require(std::max(to_cond, to_uncond) < given.integer("next_input_rows"), "a slot fills a row that is not there");
  const std::int64_t stride = given.integer("next_input_stride");
  if (to_cond >= 0) span.next_cond = given.at<float>("next_input", to_cond, stride);
  if (to_uncond >= 0) span.next_uncond = given.at<float>("next_input", to_uncond, stride);
  const auto next = line_from<StepRow>(given.at<float>("next_rows", slot.i, given.integer("next_rows_stride")));
  span.next_scale = next.s;
  for (const int to : {to_cond, to_uncond}) {
    if (to < 0) continue;
    if (auto* t = given.at<float>("next_t", to)) *t = next.t;
    if (auto* t = given.at<std::int64_t>("next_t_int", to)) *t = std::llrint(next.t);
  }
}

void fused_step(const Given& given, const Slot& slot) {
  if (!slot.steps) return;
  std::vector<float> noise(static_cast<std::size_t>(slot.n));
  StepSpan<float> span{};
  span.n = slot.n;
  span.x = given.at<float>("x", slot.i, given.integer("x_stride"));
  span.out = given.at<float>("out", slot.i, given.integer("out_stride"));
  span.eps = slot.eps;
  span.eps_uncond = slot.eps_uncond;
  const bool two_lines = given.takes("h2");
  require(two_lines == (given.integer("rows_stride") > kLineColumns), "a step's kernel and its rows differ in lines");
  const int registers = registers_of(slot.row, two_lines ? &slot.second : nullptr);
  if (registers > 0) span.h = given.at<float>("h", slot.i, slot.n);
  if (registers > 1) span.h2 = given.at<float>("h2", slot.i, slot.n);
  if (registers > 2) span.h3 = given.at<float>("h3", slot.i, slot.n);
  if (two_lines) span.second = &slot.second;
  if (slot.row.adds_noise() || slot.second.adds_noise()) {
    require(given.word("seed"), "a step with noise is given a kernel without");
    const auto step = static_cast<std::uint32_t>(*given.at<int>("step", slot.i));
    fill_normal(*given.at<std::uint64_t>("seed", slot.i), step, NoiseStream::Step, 0, slot.n, noise.data());
    span.z = noise.data();
  }
  span.x0 = given.at<float>("x0", slot.i, slot.n);
  aim(given, slot, span);
  const bool finite = stepfuse::fused_step(slot.row, span);
  if (auto* nonfinite = given.at<std::int32_t>("nonfinite", slot.i); nonfinite && !finite) *nonfinite = 1;
}

Guidance guidance_of(const Given& given, const Slot& slot) {
  const float* values = given.at<float>("guidance", slot.i, 4);
  return {values[0], static_cast<Blend>(static_cast<int>(values[1])), values[2], values[3]};
}

// The core's own, so that the bits are the same.
void guidance_sums(const Given& given, const Slot& slot) {
  if (!slot.guided) return;
  const float* x = given.at<float>("x", slot.i, given.integer("x_stride"));
  *given.at<GuidanceSums>("sums", slot.i) =
      stepfuse::guidance_sums(guidance_of(given, slot), slot.n, x, slot.eps, slot.eps_uncond);
}

void put_adapted(const Given& given, const Slot& slot, const StepRow& row, const SecondLine& second) {
  float* adapted = given.at<float>("adapted", slot.i, given.integer("rows_stride"));
  std::memcpy(adapted, &row, sizeof row);
  if (given.integer("rows_stride") > kLineColumns) std::memcpy(adapted + kLineColumns, &second, sizeof second);
}

void guided_rows(const Given& given, const Slot& slot) {
  require(given.integer("tiles") == 1, "a sample has more tiles than it should");
  StepRow row = slot.row;
  SecondLine second = slot.second;
  if (slot.guided) guide(row, &second, guidance_of(given, slot), slot.n, *given.at<GuidanceSums>("sums", slot.i));
  put_adapted(given, slot, row, second);
}

constexpr int kCounts = 2 * 264;  // words of a slot: of its tile, and what is found

// In place of counts the values themselves, of which a tile has fewer.
void magnitude_counts(const Given& given, const Slot& slot) {
  auto* values = given.at<float>("counts", slot.i, kCounts);
  const float* x = given.at<float>("x", slot.i, given.integer("x_stride"));
  for (int k = 0; slot.steps && k < slot.n; ++k) {
    values[k] = x[k];
    values[kBlock + k] = slot.eps[k];
    if (slot.guided) values[2 * kBlock + k] = slot.eps_uncond[k];
  }
}

void thresholded_rows(const Given& given, const Slot& slot) {
  require(given.integer("tiles") == 1, "a sample has more tiles than it should");
  if (given.integer("shift") > 0) return;
  StepRow row = slot.row;
  const Adaptive adaptive{{}, *given.at<float>("ratio", slot.i), *given.at<float>("largest", slot.i), {}};
  std::vector<float> scratch(static_cast<std::size_t>(slot.n));
  const auto* values = given.at<float>("counts", slot.i, kCounts);
  const float* eps_uncond = slot.guided ? values + 2 * kBlock : nullptr;
  if (slot.steps) adapt(row, nullptr, adaptive, slot.n, values, values + kBlock, eps_uncond, scratch.data());
  put_adapted(given, slot, row, slot.second);
}

void renormed_predictions(const Given& given, const Slot& slot) {
  const Renorm by = *given.at<Renorm>("patches", slot.i);
  if (slot.guided && by.any()) stepfuse::renorm(by, slot.row.g, slot.eps, slot.eps_uncond);
}

void keep_known(const Given& given, const Slot& slot) {
  const int kept = *given.at<int>("known_row", slot.i);
  if (!slot.steps || kept < 0) return;
  const float* image = given.at<float>("known", kept, 3 * slot.n);
  const Level level = *given.at<Level>("levels", slot.i);
  StepSpan<float> span{};
  span.n = slot.n;
  span.out = given.at<float>("x", slot.i, given.integer("x_stride"));
  span.x0 = given.at<float>("x0", slot.i, slot.n);
  aim(given, slot, span);
  stepfuse::keep_known({image, image + slot.n, {level, level}}, 0, image + 2 * slot.n, span);
}

class DeviceNetwork;
DeviceNetwork* network_here = nullptr;  // what the kernel "network" is

void run_kernel(const char* name, void** params, const unsigned* shape);

// A context, and what a round needs in it.
struct Rig {
  Rig(const ModelSpec& model, const Fake& fake)
      : spec(model),
        context(Context::open(Driver::load(kDriver), 0)),
        stream(context),
        sample(zeros(static_cast<std::size_t>(spec.elements) * sizeof(float))),
        timestep(zeros(sizeof(std::int64_t))),
        label(zeros(sizeof(float))),
        tag(zeros(sizeof(Tag))),
        prediction(zeros(static_cast<std::size_t>(spec.elements) * sizeof(float))) {
    fake.kernels(&run_kernel);
    std::string image = "network 1\nbeside 1\n";
    for (const auto& [name, signature] : kKernels)
      image += name + " " + std::to_string(signature.arguments.size()) + "\n";
    module = std::make_shared<Module>(context, image);
  }

  StepProgram program() const {
    const auto kernel = [&](const std::string& name) {
      return std::make_shared<StepKernel>(module, name, kKernels.at(name));
    };
    return StepProgram({{{1, kernel("plain_step")}},
                        {{1, kernel("fused_step")}},
                        {{1, kernel("second_step")}},
                        kernel("guidance_sums"),
                        kernel("guided_rows"),
                        kernel("magnitude_counts"),
                        kernel("thresholded_rows"),
                        kernel("keep_known"),
                        kernel("renormed_predictions")});
  }
  std::unique_ptr<Stepper> stepper(std::map<int, std::shared_ptr<const Graph>> forwards) const {
    DeviceRows rows{{sample.get(), timestep.get(), prediction.get()},
                    static_cast<std::size_t>(spec.elements) * sizeof(float),
                    {{label.get(), Stored::AsIs}, {tag.get(), Stored::AsIs}}};
    return std::make_unique<DeviceStepper>(stream, spec, std::move(rows), program(), std::move(forwards));
  }
  NetworkRows rows() const {
    return {spec,
            reinterpret_cast<const float*>(sample.get()),
            reinterpret_cast<const void*>(timestep.get()),
            reinterpret_cast<const float*>(label.get()),
            reinterpret_cast<const Tag*>(tag.get()),
            reinterpret_cast<float*>(prediction.get())};
  }
  void forward(int rows) const {
    launch(stream, {module->function("network"), {1, 1, 1}, {32, 1, 1}, 0, {static_cast<std::uint64_t>(rows)}});
  }

  const ModelSpec spec;
  const ContextPtr context;
  const Stream stream;
  DeviceBuffer sample, timestep, label, tag, prediction;
  std::shared_ptr<Module> module;

 private:
  DeviceBuffer zeros(std::size_t row_bytes) const {
    const std::vector<std::byte> none(row_bytes * static_cast<std::size_t>(spec.max_rows));
    DeviceBuffer buffer(context, none.size());
    buffer.upload(stream, none.data(), none.size());
    stream.synchronize();
    return buffer;
  }
};

// Enqueues forwards, captured or one by one. A network that reads its rows waits for the device first, as a module does
// that asks for a value.
class DeviceNetwork final : public Network {
 public:
  DeviceNetwork(const Rig& rig, const Fake& fake, bool padded, std::uint64_t seed)
      : Network(rig.rows(), padded, seed),
        reads_rows(random_.one_in(2)),
        fails_at_random(random_.one_in(3)),
        rig_(rig),
        fake_(fake) {
    network_here = this;
    if (!random_.one_in(2)) return;
    std::map<int, const Graph*> forwards;
    for (int rows = rig.spec.max_rows; rows > 0; rows /= 2) {
      Capture capture(rig.stream);
      rig.forward(rows);
      graphs_[rows] = std::make_shared<Graph>(capture.end());
      forwards[rows] = graphs_[rows].get();
    }
    captured_.emplace(rig.stream, forwards);
  }

  int computed(int rows) const override { return captured_ ? captured_->computed(rows) : rows; }
  void compute(int rows) {
    rows_of_kernels_ += static_cast<std::uint64_t>(rows);
    predict_all(rows);
  }
  // Beside those of its own calls: of pieces, which the stepper launches.
  std::uint64_t rows_computed() const override {
    rig_.stream.synchronize();
    return Network::rows_computed() + rows_of_kernels_ - rows_launched_;
  }
  // A piece has no call in which the network could read its rows.
  std::map<int, std::shared_ptr<const Graph>> graphs() const {
    return reads_rows ? std::map<int, std::shared_ptr<const Graph>>{} : graphs_;
  }

  const bool reads_rows, fails_at_random;

 private:
  void run(int rows) override {
    if (fails_at_random && random_.one_in(8)) fake_.fail(random_.from(0, 40), CUDA_ERROR_OUT_OF_MEMORY);
    if (reads_rows) {
      rig_.stream.synchronize();
      raise_if_faulty(rows);
    } else {
      raise_by_chance({});
    }
    captured_ ? captured_->forward(rows, 0) : rig_.forward(rows);
    rows_launched_ += static_cast<std::uint64_t>(computed(rows));
  }

  const Rig& rig_;
  const Fake& fake_;
  std::map<int, std::shared_ptr<const Graph>> graphs_;
  std::optional<GraphDenoiser> captured_;
  std::atomic<std::uint64_t> rows_of_kernels_{0};  // which any thread may run that waits for the device
  std::uint64_t rows_launched_ = 0;
};

// Another network on the same stream, as that of another size: a thread of its own that captures, copies and waits, and
// in its turn launches two kernels that nothing may come between.
class Beside {
 public:
  Beside(const Rig& rig, bool calls_fail, std::uint64_t seed)
      : rig_(rig), calls_fail_(calls_fail), random_(seed), own_(rig.context, sizeof(int)), event_(rig.context) {
    between = false;
    thread_ = std::thread([this] { run(); });
  }
  ~Beside() {
    stop_ = true;
    thread_.join();
  }

  static void compute(bool second) {
    require(between == second, "a launch came between two of one turn");
    between = !second;
  }
  static inline bool between = false;  // the first has run and the second has not

 private:
  void run() {
    while (!stop_) {
      try {
        use();
      } catch (const CudaError&) {
        require(calls_fail_, "a call failed that should not");
      }
      std::this_thread::sleep_for(std::chrono::microseconds(random_.from(0, 100)));
    }
  }

  void use() {
    static constexpr int kValue = 1;
    const int what = random_.from(0, 3);
    if (what == 0) {
      Capture capture(rig_.stream);
      put(0);
      capture.end();
    } else if (what == 1 && !calls_fail_) {
      const Stream::Turn turn(rig_.stream);
      put(0);
      put(1);
    } else if (what == 2) {
      own_.upload(rig_.stream, &kValue, sizeof kValue);
      rig_.stream.record(event_);
      event_.synchronize();
    } else {
      rig_.stream.synchronize();
    }
  }

  void put(std::uint64_t second) const {
    launch(rig_.stream, {rig_.module->function("beside"), {1, 1, 1}, {32, 1, 1}, 0, {second}});
  }

  const Rig& rig_;
  const bool calls_fail_;
  Random random_;
  DeviceBuffer own_;
  cuda::Event event_;
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

void run_kernel(const char* name, void** params, const unsigned* shape) {
  using Body = void (*)(const Given&, const Slot&);
  static const std::map<std::string, Body> kBodies{{"fused_step", fused_step},
                                                   {"plain_step", fused_step},
                                                   {"second_step", fused_step},
                                                   {"guidance_sums", guidance_sums},
                                                   {"guided_rows", guided_rows},
                                                   {"magnitude_counts", magnitude_counts},
                                                   {"thresholded_rows", thresholded_rows},
                                                   {"keep_known", keep_known},
                                                   {"renormed_predictions", renormed_predictions}};
  if (!std::strcmp(name, "beside")) return Beside::compute(*static_cast<const std::uint64_t*>(params[0]));
  require(!Beside::between, "a launch came between two of one turn");
  if (!std::strcmp(name, "network")) return network_here->compute(*static_cast<const int*>(params[0]));
  const KernelSignature& signature = kKernels.at(name);
  const Given given(signature, params);
  const auto slots = static_cast<int>(shape[signature.grid == Grid::Tiles ? 1 : 0]);
  for (int i = 0; i < slots; ++i) kBodies.at(name)(given, Slot(given, i));
}

class DeviceBackend final : public StressBackend {
 public:
  DeviceBackend(const ModelSpec& spec, bool padded, std::uint64_t seed) {
    Random random(seed);
    fake_.reset();
    rig_.emplace(spec, fake_);
    network_.emplace(*rig_, fake_, padded, random.bits());
    fake_.late(random.from(0, 2));
    if (random.one_in(2)) beside_.emplace(*rig_, network_->fails_at_random, random.bits());
  }
  ~DeviceBackend() override {
    beside_.reset();
    network_.reset();
    rig_.reset();
    require(!*fake_.text(1), fake_.text(1));
    require(!*fake_.text(2), fake_.text(2));
  }

  std::unique_ptr<Stepper> stepper() override { return rig_->stepper(network_->graphs()); }
  Network& network() override { return *network_; }
  bool reads_rows() const override { return network_->reads_rows; }
  bool fails_at_random() const override { return network_->fails_at_random; }
  std::shared_ptr<const float> device_memory() override {
    try {
      const std::size_t bytes = static_cast<std::size_t>(rig_->spec.elements) * sizeof(float);
      const auto buffer = std::make_shared<const DeviceBuffer>(rig_->context, bytes);
      return {buffer, reinterpret_cast<const float*>(buffer->get())};
    } catch (const CudaError&) {
      require(fails_at_random(), "a call failed that should not");
      return nullptr;
    }
  }

 private:
  const Fake fake_{kDriver};
  std::optional<Rig> rig_;
  std::optional<DeviceNetwork> network_;
  std::optional<Beside> beside_;
};

}  // namespace

std::unique_ptr<StressBackend> make_stress_backend(const ModelSpec& spec, bool padded, std::uint64_t seed) {
  return std::make_unique<DeviceBackend>(spec, padded, seed);
}

}  // namespace stepfuse
