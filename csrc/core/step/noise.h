// Counter-based standard normal noise. A value depends on (seed, step, stream, element) and on nothing else: not on the
// batch, slot, neighbours, thread or instruction set. Oracle: engine/samplers/noise.py.
#pragma once

#include <cstdint>

#include "isa.h"

namespace stepfuse {

enum class NoiseStream : std::uint32_t {
  InitialState = 0,  // the noise that a sample begins with
  Step = 1,          // the noise that a step adds
};

// Writes elements [first, first + n) of one sample's noise. `first` must be a multiple of 4, the values a Philox block
// gives.
void fill_normal(std::uint64_t seed, std::uint32_t step, NoiseStream stream, std::int64_t first, std::int64_t n,
                 float* out, Isa isa = best_isa());

}  // namespace stepfuse
