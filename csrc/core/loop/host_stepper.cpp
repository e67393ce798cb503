#include "host_stepper.h"

#include "../step/fused_step.h"
#include "../step/noise.h"

namespace stepfuse {

HostStepper::HostStepper(const ModelSpec& spec)
    : staging_(spec), scratch_(static_cast<std::size_t>(spec.elements) * sizeof(float)) {}

void HostStepper::begin(Sample& sample) {
  const Request& request = sample.request;
  const auto n = static_cast<std::size_t>(spec().elements);
  const int slot = slots_.take();
  try {
    if (in_slot_.size() <= static_cast<std::size_t>(slot)) in_slot_.resize(static_cast<std::size_t>(slot) + 1);
    SlotMemory& memory = in_slot_[static_cast<std::size_t>(slot)];
    memory.history.assign(request.table->uses_history ? n : 0, 0.0f);
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
  StepRow row = sample.row();
  const bool guided = entry.row_cond >= 0 && entry.row_uncond >= 0;
  StepSpan<float> span{};
  span.n = spec().elements;
  span.x = span.out = request.x;
  span.eps = buffers().prediction_row(entry.row_cond >= 0 ? entry.row_cond : entry.row_uncond);
  span.eps_uncond = guided ? buffers().prediction_row(entry.row_uncond) : nullptr;
  span.h = memory.history.empty() ? nullptr : memory.history.data();
  span.x0 = request.x0;
  auto* scratch = static_cast<float*>(scratch_.data());
  const Adaptive& adaptive = request.table->adaptive;
  if (adaptive.any()) row = adapted(row, adaptive, span.n, span.x, span.eps, span.eps_uncond, scratch);
  if (row.adds_noise()) {
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
