// One step of one sampler as one cache line: sixteen float32 columns, the contract between host tables and every
// kernel.
#pragma once

#include <cstring>

namespace stepfuse {

//   e  = e_u + g (e_c - e_u)                            guidance blend
//   d  = clamp(p_x x + p_e e, lo, hi)                   line 1: the implied clean sample
//   x' = q_x x + q_d d + q_e e + q_h h + q_z z          line 2: re-noise to the next, cleaner timestep
//   h' = u_x x + u_d d + u_e e + u_h h                  the history register
struct alignas(64) StepRow {
  float t;                        // timestep input of the network
  float s;                        // input scale: the network sees s x
  float g;                        // guidance scale; exactly 1: conditional pass alone, exactly 0: unconditional alone
  float p_x, p_e, lo, hi;         // line 1; lo = -inf and hi = +inf where nothing is clamped
  float q_x, q_d, q_e, q_h, q_z;  // line 2
  float u_x, u_d, u_e, u_h;       // history

  bool adds_noise() const { return q_z != 0.0f; }
  bool reads_history() const { return q_h != 0.0f || u_h != 0.0f; }
  bool keeps_history() const { return u_x != 0.0f || u_d != 0.0f || u_e != 0.0f || u_h != 0.0f; }
};

constexpr int kStepColumns = 16;

// A row from sixteen floats of any alignment.
inline StepRow row_from(const float* columns) {
  StepRow row;
  std::memcpy(&row, columns, sizeof row);
  return row;
}

static_assert(sizeof(StepRow) == 64 && sizeof(StepRow) == kStepColumns * sizeof(float), "a step is one cache line");

}  // namespace stepfuse
