// The fused step on the CPU: guidance blend, both lines of the step, history, and the next forward's input rows in one
// pass over the state.
//   Numerics : loads widen to float32; products and sums round one by one (no FMA), so every instruction set gives the
//              same bits; one rounding at the store.
//   Traffic  : guided 3 reads and 3 writes of n elements (the state and two input rows); noise and each register
//   beside. Oracle   : kernels/reference.py.
#pragma once

#include <cstdint>

#include "isa.h"
#include "row.h"

namespace stepfuse {

template <class T>
struct StepSpan {
  std::int64_t n;          // elements of one sample
  const T* x;              // (n,) state
  const T* eps;            // (n,) network output: conditional, or the only pass of an unguided step
  const T* eps_uncond;     // (n,) unconditional output; null: `eps` is taken as it is
  T* h;                    // (n,) history, updated in place; null if the step neither reads nor keeps one
  const T* z;              // (n,) standard normal noise; null if the step adds none
  T* out;                  // (n,) next state; may be x
  T* x0 = nullptr;         // (n,) predicted clean sample, written if not null
  T* next_cond = nullptr;  // (n,) next forward's rows, `next_scale` times the next state; written if not null
  T* next_uncond = nullptr;
  float next_scale = 1.0f;
  const SecondLine* second = nullptr;  // of the step; null: it has one line
  T* h2 = nullptr;  // (n,) further registers of the second line; null if it neither reads nor keeps one
  T* h3 = nullptr;
};

// Runs one row over one sample. Returns false if a network output or, before the store rounds it, the next state is not
// finite; the arrays are written all the same. The arrays may coincide (out == x) but must not partly overlap.
template <class T>
bool fused_step(const StepRow& row, const StepSpan<T>& span, Isa isa = best_isa());

// The same over `samples` samples that lie one after the other, the first at `span`. `rows` holds `columns` floats, one
// line's or two lines', for each of them if `row_a_sample`, else for all.
template <class T>
bool fused_steps(const float* rows, int columns, bool row_a_sample, std::int64_t samples, StepSpan<T> span,
                 Isa isa = best_isa());

}  // namespace stepfuse
