#include "module.h"

namespace stepfuse::cuda {

namespace {
constexpr unsigned kFreeSharedBytes = 48 << 10;
}

CUDA_KERNEL_NODE_PARAMS_v2 Launch::params(std::vector<void*>& pointers) const {
  pointers.clear();
  for (const std::uint64_t& argument : arguments) pointers.push_back(const_cast<std::uint64_t*>(&argument));
  CUDA_KERNEL_NODE_PARAMS_v2 params{};
  params.func = function;
  params.gridDimX = grid[0], params.gridDimY = grid[1], params.gridDimZ = grid[2];
  params.blockDimX = block[0], params.blockDimY = block[1], params.blockDimZ = block[2];
  params.sharedMemBytes = shared_bytes;
  params.kernelParams = pointers.data();
  return params;
}

Module::Module(ContextPtr context, const std::string& image) {
  if (image.empty()) throw std::invalid_argument("a module must have at least one byte");
  const Context::Scope scope(*context);
  std::array<char, 4096> log{};
  // The size is passed as the pointer's own bits.
  std::array<CUjit_option, 2> options{CU_JIT_ERROR_LOG_BUFFER, CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES};
  std::array<void*, 2> values{log.data(), reinterpret_cast<void*>(log.size() - 1)};
  CUmodule module = nullptr;
  // PTX is text up to a zero, which a string ends with.
  const CUresult code =
      context->driver().cuModuleLoadDataEx.result(&module, image.c_str(), 2, options.data(), values.data());
  if (code != CUDA_SUCCESS) {
    std::string message = context->driver().describe(code, "cuModuleLoadDataEx") + "; the GPU is of sm_" +
                          std::to_string(context->compute_capability());
    if (log[0]) message += std::string("; ") + log.data();
    throw CudaError(code, message);
  }
  module_ = {std::move(context), module};
}

CUfunction Module::function(const std::string& name, unsigned shared_bytes) const {
  const Context::Scope scope(*context());
  CUfunction found = nullptr;
  const CUresult code = module_.driver().cuModuleGetFunction.result(&found, module_.get(), name.c_str());
  if (code != CUDA_SUCCESS)
    throw CudaError(code, module_.driver().describe(code, "cuModuleGetFunction(\"" + name + "\")"));
  if (shared_bytes > kFreeSharedBytes)
    module_.driver().cuFuncSetAttribute(found, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                                        static_cast<int>(shared_bytes));
  return found;
}

FunctionInfo Module::info(CUfunction function) const {
  const Context::Scope scope(*context());
  FunctionInfo info{};
  module_.driver().cuFuncGetAttribute(&info.registers, CU_FUNC_ATTRIBUTE_NUM_REGS, function);
  module_.driver().cuFuncGetAttribute(&info.local_bytes, CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES, function);
  module_.driver().cuFuncGetAttribute(&info.max_threads, CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK, function);
  return info;
}

void launch(const Stream& stream, const Launch& launch) {
  const Stream::Turn turn(stream);
  const Context::Scope scope(*stream.context());
  std::vector<void*> pointers;
  CUDA_KERNEL_NODE_PARAMS_v2 params = launch.params(pointers);
  stream.context()->driver().cuLaunchKernel(launch.function, launch.grid[0], launch.grid[1], launch.grid[2],
                                            launch.block[0], launch.block[1], launch.block[2], launch.shared_bytes,
                                            stream.get(), params.kernelParams, nullptr);
}

}  // namespace stepfuse::cuda
