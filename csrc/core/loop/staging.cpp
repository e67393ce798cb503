#include "staging.h"

namespace stepfuse {

Staging::Staging(const ModelSpec& spec) : buffers_(spec), row_contents_(spec.max_rows) {}

void Staging::stage(const Sample& sample, const PlanEntry& entry) {
  for (const int row : {entry.row_cond, entry.row_uncond}) {
    if (row < 0 || set_inputs(row, sample, sample.step, row == entry.row_cond)) continue;
    float* input = buffers_.sample_row(row);
    const float scale = sample.row().s;
    for (std::int64_t k = 0; k < spec().elements; ++k) input[k] = scale * sample.request.x[k];
  }
}

void Staging::set_next_rows(const Sample& sample, const PlanEntry& entry, StepSpan<float>& span) {
  if (entry.row_cond >= 0) span.next_cond = buffers_.sample_row(entry.row_cond);
  if (entry.row_uncond >= 0) span.next_uncond = buffers_.sample_row(entry.row_uncond);
  span.next_scale = sample.row(1).s;
  for (const int row : {entry.row_cond, entry.row_uncond})
    if (row >= 0) set_inputs(row, sample, sample.step + 1, row == entry.row_cond);
}

void Staging::pad(int from, int to) {
  for (int row = from; row < to; ++row) {
    buffers_.copy_inputs(0, row);
    row_contents_.release(row);
  }
}

// Sets the timestep and the conditioning of a row. Returns whether it already holds the state of that step.
bool Staging::set_inputs(int row, const Sample& sample, int step, bool conditional) {
  const RowContents::Valid valid = row_contents_.claim(row, sample, step, conditional);
  buffers_.set_timestep(row, sample.request.table->rows[static_cast<std::size_t>(step)].t);
  if (valid.conditioning) return valid.state;
  const auto& values = conditional ? sample.request.cond : sample.request.null_cond;
  for (std::size_t input = 0; input < values.size(); ++input) buffers_.set_cond(input, row, values[input]);
  return valid.state;
}

}  // namespace stepfuse
