// Random samples, and the oracle that computes what their results must be.
#pragma once

#include <atomic>
#include <cmath>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "../../csrc/core/loop/sample.h"
#include "../../csrc/core/step/fused_step.h"
#include "../../csrc/core/step/noise.h"
#include "faulty_network.h"

namespace stepfuse {

// A gate that counts the iterations it may let pass: how often it was opened, less how often it was passed.
struct CountedGate {
  explicit CountedGate(bool open) : iterations(open) { gate->open = open; }
  bool add(int n) { return iterations.fetch_add(n, std::memory_order_relaxed) + n == (n > 0); }

  std::shared_ptr<Gate> gate = std::make_shared<Gate>();
  std::atomic<int> iterations;  // 0 or 1
};

// All that a request borrows: freed when the server releases it, unless the client reads previews.
struct Memory {
  std::vector<float> x, x0, image, mask;
  float label, null_label;
  Tag tag;
  std::shared_ptr<const float> copy{};  // of the result, on the device; null: none
};

// A request with its memory, what must come of it, and what did.
struct RandomSample {
  std::uint64_t id = 0;
  int client = 0;
  std::shared_ptr<const Table> table;
  std::uint64_t seed = 0;
  bool has_noise = false, conditioned = false, watched = false;
  float label = 0, null_label = 0;
  std::vector<float> image, mask;  // empty without a known region
  std::vector<Level> levels;
  Fault fault = Fault::None;
  int faulty_step = 0;
  double submitted = 0, timeout = kNever;
  std::shared_ptr<CountedGate> gate;
  std::shared_ptr<Memory> preview;  // of a sample behind a gate
  Memory* memory = nullptr;

  Flag cancel_asked;

  // Written by the thread in run(), read by the client after a notice: the locks of server and mailbox order these.
  int steps = 0, ends = 0;
  EventKind end = EventKind::Retried;
  std::vector<float> x;
};

inline StepRow random_row(Random& random, int steps_left, bool history, bool noise) {
  constexpr float kGuidance[] = {0.0f, 1.0f, 3.0f};
  const bool clamped = random.one_in(2);
  StepRow row{};
  row.t = 10.0f * static_cast<float>(steps_left) + (random.one_in(2) ? 0.25f : 0.0f);
  row.s = random.one_in(2) ? 1.0f : random.coefficient(0.5, 1.0);
  row.g = kGuidance[random.from(0, 2)];
  row.p_x = random.coefficient(0.8, 1.2);
  row.p_e = random.coefficient(-0.5, -0.1);
  row.lo = clamped ? -1.5f : -INFINITY;
  row.hi = clamped ? 1.5f : INFINITY;
  row.q_x = random.coefficient(0.0, 0.5);
  row.q_d = random.coefficient(0.3, 0.6);
  row.q_e = random.coefficient(0.0, 0.3);
  if (noise) row.q_z = random.coefficient(0.1, 0.3);
  if (!history) return row;
  row.q_h = random.coefficient(-0.3, 0.3);
  row.u_x = random.coefficient(-0.3, 0.3);
  row.u_d = random.coefficient(-0.5, 0.5);
  row.u_e = random.coefficient(-0.3, 0.3);
  row.u_h = random.coefficient(-0.3, 0.3);
  return row;
}

// A row that keeps nothing in a register leaves it undefined (a device does not write it): the next must not read it.
inline SecondLine random_second(Random& random, const SecondLine& before, bool keeps_history, bool first, bool noise) {
  SecondLine line{};
  line.q_u = random.coefficient(-0.2, 0.2);
  line.u_u = random.coefficient(-0.2, 0.2);
  if (noise) line.u_z = random.coefficient(-0.2, 0.2);
  if (first || before.keeps_second()) line.q_h2 = line.u_h2 = line.w_h2 = random.coefficient(-0.3, 0.3);
  if (first || before.keeps_third()) line.q_h3 = line.u_h3 = line.w_h3 = random.coefficient(-0.3, 0.3);
  if (first || keeps_history) line.v_h = line.w_h = random.coefficient(-0.3, 0.3);
  if (random.one_in(2)) return line;
  line.v_x = random.coefficient(-0.3, 0.3);
  line.v_d = random.coefficient(-0.3, 0.3);
  line.v_e = random.coefficient(-0.3, 0.3);
  return line;
}

inline std::shared_ptr<const Table> random_table(Random& random, int steps, std::int64_t elements) {
  const bool history = random.one_in(3), noise = random.one_in(3), two_lines = random.one_in(3);
  std::vector<StepRow> rows;
  std::vector<SecondLine> second;
  for (int i = 0; i < steps; ++i) {
    rows.push_back(random_row(random, steps - i, history && i % 3 != 2, noise && i % 2));
    // A row that keeps no history leaves the register undefined (a device does not write it): the next must not read
    // it.
    if (i > 0 && i % 3 == 0) rows.back().q_h = rows.back().u_h = 0;
    if (!two_lines) continue;
    // h is kept by every step: u_u is not 0.
    second.push_back(random_second(random, i ? second.back() : SecondLine{}, i > 0, i == 0, noise));
  }
  Adaptive adaptive;
  Guidance& guidance = adaptive.guidance;
  if (random.one_in(4)) guidance.rescale = random.coefficient(0.1, 1.0);
  if (random.one_in(4)) guidance.blend = static_cast<Blend>(random.from(1, 3));
  guidance.eta = random.coefficient(0.0, 1.0);
  if (random.one_in(2)) guidance.norm_threshold = random.coefficient(0.1, 9.0);
  if (random.one_in(4)) adaptive.threshold_ratio = random.coefficient(0.5, 1.0);
  if (random.one_in(4)) adaptive.renorm = {1, 1, 1, static_cast<std::int32_t>(elements)};
  return std::make_shared<Table>(std::move(rows), random.coefficient(0.5, 2.0), adaptive, std::move(second));
}

// No known region, an image to start from, or one of which a mask keeps a part.
inline void random_known(Random& random, std::int64_t n, RandomSample& sample) {
  if (!random.one_in(3)) return;
  for (std::int64_t k = 0; k < n; ++k) sample.image.push_back(random.coefficient(-1.0, 1.0));
  for (int i = 0; i <= sample.table->size(); ++i)
    sample.levels.push_back({random.coefficient(0.0, 1.0), random.coefficient(0.0, 1.0)});
  if (random.one_in(3)) return;
  for (std::int64_t k = 0; k < n; ++k) sample.mask.push_back(static_cast<float>(random.from(0, 2)) / 2);
}

inline std::vector<float> starting_noise(const RandomSample& sample, std::int64_t n) {
  std::vector<float> noise(static_cast<std::size_t>(n));
  // The noise that a caller passes differs from what the loop would make.
  fill_normal(sample.has_noise ? ~sample.seed : sample.seed, 0, NoiseStream::InitialState, 0, n, noise.data());
  return noise;
}

struct Trajectory {
  std::vector<std::vector<float>> x, x0;  // after each step
};

// The oracle: one sample after the other, a row at a time, no planner and no batch.
inline Trajectory trajectory(const RandomSample& sample, const ModelSpec& spec) {
  const auto n = static_cast<std::size_t>(spec.elements);
  std::vector<float> x = starting_noise(sample, spec.elements), h(n), h2(n), h3(n), z(n), input(n), eps(n),
                     eps_uncond(n), x0(n);
  const std::vector<float> noise = x;
  const auto given = [&](std::size_t level, std::size_t k) {
    return sample.levels[level].signal * sample.image[k] + sample.levels[level].noise * noise[k];
  };
  for (std::size_t k = 0; k < n; ++k) x[k] = sample.image.empty() ? sample.table->init_scale * x[k] : given(0, k);
  std::vector<float> scratch(n);
  Trajectory found;
  for (int i = 0; i < sample.table->size(); ++i) {
    const Table& table = *sample.table;
    StepRow row = table.rows[static_cast<std::size_t>(i)];
    SecondLine second = table.second.empty() ? SecondLine{} : table.second[static_cast<std::size_t>(i)];
    for (std::size_t k = 0; k < n; ++k) input[k] = row.s * x[k];
    const double t = spec.timestep == TimestepType::Int64 ? static_cast<double>(std::llrint(row.t)) : row.t;
    const bool conditional = sample.conditioned && row.g != 0.0f, guided = conditional && row.g != 1.0f;
    predict(input.data(), t, conditional ? sample.label : sample.null_label, spec.elements, eps.data());
    if (guided) predict(input.data(), t, sample.null_label, spec.elements, eps_uncond.data());
    if (guided && table.adaptive.renorm.any()) renorm(table.adaptive.renorm, row.g, eps.data(), eps_uncond.data());
    if (table.adaptive.any())
      adapt(row, &second, table.adaptive, spec.elements, x.data(), eps.data(), guided ? eps_uncond.data() : nullptr,
            scratch.data());
    if (table.adds_noise(i))
      fill_normal(sample.seed, static_cast<std::uint32_t>(i), NoiseStream::Step, 0, spec.elements, z.data());
    StepSpan<float> span{};
    span.n = spec.elements;
    span.x = span.out = x.data();
    span.eps = eps.data();
    span.eps_uncond = guided ? eps_uncond.data() : nullptr;
    span.h = table.registers > 0 ? h.data() : nullptr;
    span.h2 = table.registers > 1 ? h2.data() : nullptr;
    span.h3 = table.registers > 2 ? h3.data() : nullptr;
    if (!table.second.empty()) span.second = &second;
    span.z = table.adds_noise(i) ? z.data() : nullptr;
    span.x0 = x0.data();
    require(fused_step(row, span), "the oracle is not finite", sample.id);
    for (std::size_t k = 0; k < sample.mask.size(); ++k) {
      x[k] = sample.mask[k] * x[k] + (1 - sample.mask[k]) * given(static_cast<std::size_t>(i) + 1, k);
      x0[k] = sample.mask[k] * x0[k] + (1 - sample.mask[k]) * sample.image[k];
    }
    found.x.push_back(x);
    found.x0.push_back(x0);
  }
  return found;
}

}  // namespace stepfuse
