#include "host_stepper.h"

#include <stdexcept>

#include "../step/fused_step.h"
#include "../step/noise.h"

namespace stepfuse {

HostStepper::HostStepper(const ModelSpec& spec)
    : staging_(spec), scratch_(static_cast<std::size_t>(spec.elements) * sizeof(float)) {}

void HostStepper::begin(Sample& sample) {
  const Request& request = sample.request;
  if (request.device_copy != 0)
    throw std::invalid_argument("device_copy must be left out where samples are on the host");
  const auto n = static_cast<std::size_t>(spec().elements);
  const int slot = slots_.take();
  try {
    if (in_slot_.size() <= static_cast<std::size_t>(slot)) in_slot_.resize(static_cast<std::size_t>(slot) + 1);
    SlotMemory& memory = in_slot_[static_cast<std::size_t>(slot)];
    memory.history.assign(static_cast<std::size_t>(request.table->registers) * n, 0.0f);
    memory.noise.resize(request.keeps() ? n : 0);
    first_state(request, spec().elements, request.keeps() ? memory.noise.data() : nullptr);
  } catch (...) {
    slots_.give_back(slot);
    throw;
  }
  sample.slot = slot;
}

void HostStepper::stage(const Iteration& iteration, int rows) {
  for (std::size_t i = 0; i < iteration.samples.size(); ++i)
    staging_.stage(*iteration.samples[i], iteration.plan.entries[i]);
  staging_.pad(iteration.plan.rows, rows);
}

void HostStepper::step(const Iteration& iteration, const Iteration& next) {
  for (std::size_t i = 0; i < iteration.samples.size(); ++i) {
    Sample& sample = *iteration.samples[i];
    if (sample.live()) step(sample, iteration.plan.entries[i], next.entry_of(sample));
  }
}

void HostStepper::step(Sample& sample, const PlanEntry& entry, const PlanEntry* next) {
  const Request& request = sample.request;
  SlotMemory& memory = in_slot_[static_cast<std::size_t>(sample.slot)];
  const Table& table = *request.table;
  StepRow row = sample.row();
  SecondLine second{};
  const bool guided = entry.row_cond >= 0 && entry.row_uncond >= 0;
  StepSpan<float> span{};
  span.n = spec().elements;
  span.x = span.out = request.x;
  float* eps = buffers().prediction_row(entry.row_cond >= 0 ? entry.row_cond : entry.row_uncond);
  float* eps_uncond = guided ? buffers().prediction_row(entry.row_uncond) : nullptr;
  if (guided && table.adaptive.renorm.any()) renorm(table.adaptive.renorm, row.g, eps, eps_uncond);
  span.eps = eps;
  span.eps_uncond = eps_uncond;
  const auto history = [&](int i) { return i < table.registers ? memory.history.data() + i * span.n : nullptr; };
  span.h = history(0), span.h2 = history(1), span.h3 = history(2);
  if (const SecondLine* line = table.second_line(sample.step)) {
    second = *line;
    span.second = &second;
  }
  span.x0 = request.x0;
  auto* scratch = static_cast<float*>(scratch_.data());
  if (table.adaptive.any())
    adapt(row, span.second ? &second : nullptr, table.adaptive, span.n, span.x, span.eps, span.eps_uncond, scratch);
  if (table.adds_noise(sample.step)) {
    fill_normal(request.seed, static_cast<std::uint32_t>(sample.step), NoiseStream::Step, 0, span.n, scratch);
    span.z = scratch;
  }
  if (next) staging_.set_next_rows(sample, *next, span);
  if (!fused_step(row, span)) {
    sample.failed_step = sample.step;
    return;
  }
  if (request.keeps()) keep_known(*request.known_region, sample.step, memory.noise.data(), span);
}

void HostStepper::end(const Sample& sample) { slots_.give_back(sample.slot); }

}  // namespace stepfuse
