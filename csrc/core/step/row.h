// One step of one sampler as one cache line: sixteen float32 columns, the contract between host tables and every
// kernel. A sampler that needs more memory than one register has a second line a step.
#pragma once

#include <cstddef>
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

//   x'  = ... + q_u e_u + q_h2 h2 + q_h3 h3                   the unconditional prediction, and two registers more
//   h'  = ... + u_u e_u + u_h2 h2 + u_h3 h3 + u_z z           all from what was there before the step
//   h2' = v_x x + v_d d + v_e e + v_h h + v_h2 h2
//   h3' = w_h h + w_h2 h2 + w_h3 h3
struct alignas(64) SecondLine {
  float q_u, q_h2, q_h3;           // line 2; where one pass is computed e_u is its prediction
  float u_u, u_z, u_h2, u_h3;      // history
  float v_x, v_d, v_e, v_h, v_h2;  // the second register
  float w_h, w_h2, w_h3;           // the third
  float spare;                     // 0

  bool adds_noise() const { return u_z != 0.0f; }
  bool reads_history() const { return v_h != 0.0f || w_h != 0.0f; }
  bool keeps_history() const { return u_u != 0.0f || u_z != 0.0f || u_h2 != 0.0f || u_h3 != 0.0f; }
  bool reads_second() const { return q_h2 != 0.0f || u_h2 != 0.0f || v_h2 != 0.0f || w_h2 != 0.0f; }
  bool keeps_second() const { return v_x != 0.0f || v_d != 0.0f || v_e != 0.0f || v_h != 0.0f || v_h2 != 0.0f; }
  bool reads_third() const { return q_h3 != 0.0f || u_h3 != 0.0f || w_h3 != 0.0f; }
  bool keeps_third() const { return w_h != 0.0f || w_h2 != 0.0f || w_h3 != 0.0f; }
};

constexpr int kLineColumns = 16;

// A line from sixteen floats of any alignment.
template <class Line>
Line line_from(const float* columns) {
  Line line;
  std::memcpy(&line, columns, sizeof line);
  return line;
}

// History registers that a step reads or keeps: the first so many.
inline int registers_of(const StepRow& row, const SecondLine* second) {
  if (second && (second->reads_third() || second->keeps_third())) return 3;
  if (second && (second->reads_second() || second->keeps_second())) return 2;
  const bool first = row.reads_history() || row.keeps_history();
  return first || (second && (second->reads_history() || second->keeps_history())) ? 1 : 0;
}

constexpr std::size_t kLineBytes = kLineColumns * sizeof(float);
static_assert(sizeof(StepRow) == 64 && sizeof(StepRow) == kLineBytes, "a step is one cache line");
static_assert(sizeof(SecondLine) == 64 && sizeof(SecondLine) == kLineBytes, "or two");

}  // namespace stepfuse
