#include <cmath>
#include <cstring>

#include "dtype.h"
#include "isa_kernels.h"
#include "philox.h"

namespace stepfuse {

namespace {
constexpr int kLanes = 4;
#include "isa_kernel.inl"
}  // namespace

constexpr Isa kIsa = Isa::Portable;
#include "isa_exports.inl"

}  // namespace stepfuse
