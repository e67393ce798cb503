// Compiled kernels, and a launch of one.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "stream.h"

namespace stepfuse::cuda {

// A kernel, its grid and block, and its arguments' values: the low bytes of a word each, as many as the type has.
struct Launch {
  CUfunction function;
  std::array<unsigned, 3> grid;
  std::array<unsigned, 3> block;
  unsigned shared_bytes = 0;
  std::vector<std::uint64_t> arguments;

  // The driver's form, valid while `pointers` and this object live.
  CUDA_KERNEL_NODE_PARAMS_v2 params(std::vector<void*>& pointers) const;
};

struct FunctionInfo {
  int registers, local_bytes, max_threads;
};

class Module {
 public:
  // A cubin, a fat binary, or PTX, which the driver compiles. Throws CudaError with the compiler's log.
  Module(ContextPtr context, const std::string& image);

  // Allows launches of so many bytes of shared memory: above 48 KiB a kernel's attribute must say so.
  CUfunction function(const std::string& name, unsigned shared_bytes = 0) const;
  FunctionInfo info(CUfunction function) const;
  const ContextPtr& context() const { return module_.context(); }

 private:
  Owned<CUmodule, &Driver::cuModuleUnload> module_;
};

void launch(const Stream& stream, const Launch& launch);

}  // namespace stepfuse::cuda
