#include "isa.h"

namespace stepfuse {

std::vector<Isa> available_isas() {
  std::vector<Isa> found{Isa::Portable};
#if STEPFUSE_X86
  if (__builtin_cpu_supports("avx2")) found.push_back(Isa::Avx2);
  if (found.size() == 2 && __builtin_cpu_supports("avx512f")) found.push_back(Isa::Avx512);
#endif
  return found;
}

Isa best_isa() {
  static const Isa best = available_isas().back();
  return best;
}

const char* name_of(Isa isa) {
  switch (isa) {
    case Isa::Avx2:
      return "avx2";
    case Isa::Avx512:
      return "avx512";
    case Isa::Portable:
      break;
  }
  return "portable";
}

}  // namespace stepfuse
