// Instruction sets that the kernels are compiled for. Chosen at run time: the library itself is built for the baseline
// target.
#pragma once

#include <vector>

#if defined(__GNUC__) && defined(__x86_64__)
#define STEPFUSE_X86 1
#else
#define STEPFUSE_X86 0
#endif

// GCC's and Clang's vector types; MSVC has none.
#if (defined(__GNUC__) || defined(__clang__)) && !defined(STEPFUSE_WITHOUT_VECTOR_TYPES)
#define STEPFUSE_VECTOR_TYPES 1
#endif

namespace stepfuse {

enum class Isa {
  Portable,  // what the compiler's baseline target has (SSE2, NEON)
  Avx2,      // 8 lanes
  Avx512,    // 16 lanes
};

std::vector<Isa> available_isas();  // ascending: Portable always, the best one last
Isa best_isa();
const char* name_of(Isa isa);

}  // namespace stepfuse
