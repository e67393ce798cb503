#include "driver.h"

#include "shared_library.h"

namespace stepfuse::cuda {

namespace {

using FindCall = CUresult (*)(const char*, void**, int, std::uint64_t, int*);

// The remedy, which the driver's own text lacks; null if there is none to add.
const char* advice_for(CUresult code) {
  switch (code) {
    case CUDA_ERROR_NO_DEVICE:
      return "no GPU is visible to this process: see nvidia-smi and CUDA_VISIBLE_DEVICES";
    case CUDA_ERROR_SYSTEM_DRIVER_MISMATCH:
      return "the driver's library and its kernel module differ in version: reboot after an update, and in a container "
             "mount the library of the host";
    case CUDA_ERROR_CALL_REQUIRES_NEWER_DRIVER:
    case CUDA_ERROR_UNSUPPORTED_PTX_VERSION:
      return "update NVIDIA's driver";
    case CUDA_ERROR_NO_BINARY_FOR_GPU:
    case CUDA_ERROR_INVALID_IMAGE:
      return "the kernel was not built for this GPU: build it with python -m stepfuse.kernels.aot --arch, or install "
             "stepfuse[kernels], whose kernels are compiled when they are first used";
    case CUDA_ERROR_JIT_COMPILER_NOT_FOUND:
      return "the driver's compiler, libnvidia-ptxjitcompiler.so.1, is missing: install it with the driver";
    case CUDA_ERROR_ILLEGAL_ADDRESS:
      return "a kernel used memory that is not its own; this context can do no more: restart the process";
    case CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED:
    case CUDA_ERROR_STREAM_CAPTURE_INVALIDATED:
      return "what is captured must neither synchronise nor allocate: warm the network up first, or run it eagerly";
    default:
      return nullptr;
  }
}

}  // namespace

std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

std::shared_ptr<const Driver> Driver::load(const std::string& path) {
  std::string error;
  void* library = open_library(path, error);
  if (!library)
    throw CudaError(CUDA_ERROR_NOT_INITIALIZED,
                    "there is no CUDA driver (" + error +
                        "): install NVIDIA's driver, in a container give it the GPU, or run on the CPU");
  // In a driver older than this function all others are found by their exported names.
  const auto get = reinterpret_cast<FindCall>(find_symbol(library, "cuGetProcAddress_v2"));
  const auto find = [&](const char* name, const char* exported, int version) -> void* {
    if (!get) return find_symbol(library, exported);
    void* function = nullptr;
    int status = 0;
    const CUresult code = get(name, &function, version, CU_GET_PROC_ADDRESS_DEFAULT, &status);
    return code == CUDA_SUCCESS ? function : nullptr;
  };

  std::shared_ptr<Driver> driver(new Driver);
  const auto version_of = reinterpret_cast<CUresult (*)(int*)>(find("cuDriverGetVersion", "cuDriverGetVersion", 2020));
  driver->error_name_ = reinterpret_cast<decltype(error_name_)>(find("cuGetErrorName", "cuGetErrorName", 6000));
  driver->error_text_ = reinterpret_cast<decltype(error_text_)>(find("cuGetErrorString", "cuGetErrorString", 6000));
  if (!version_of || version_of(&driver->version_) != CUDA_SUCCESS)
    throw CudaError(CUDA_ERROR_NOT_INITIALIZED, path + " is not a CUDA driver: it gives no version");
  driver->require(kGraphs);

  // Functions newer than kGraphs may be absent, and then throw where they are called; destructors call none of them.
#define STEPFUSE_FIND(name, exported, since, ...)                                                     \
  driver->name.driver_ = driver.get();                                                                \
  driver->name.name_ = #name;                                                                         \
  driver->name.function_ = reinterpret_cast<CUresult (*)(__VA_ARGS__)>(find(#name, exported, since)); \
  if (!driver->name.function_ && (since) <= kGraphs.version) driver->missing(#name);
  STEPFUSE_CUDA_CALLS(STEPFUSE_FIND)
#undef STEPFUSE_FIND
  driver->cuInit(0);
  return driver;
}

void Driver::require(const Feature& feature) const {
  if (has(feature)) return;
  throw CudaError(CUDA_ERROR_CALL_REQUIRES_NEWER_DRIVER,
                  std::string(feature.name) + " needs a driver for CUDA " + version_text(feature.version) +
                      " or newer, this one is for CUDA " + version_text(version_) + ": update NVIDIA's driver");
}

void Driver::missing(const char* call) const {
  throw CudaError(CUDA_ERROR_NOT_FOUND, std::string("this driver, for CUDA ") + version_text(version_) + ", has no " +
                                            call + ": its installation is broken, or incomplete");
}

std::string Driver::describe(CUresult code, const std::string& call) const {
  const char* name = nullptr;
  const char* text = nullptr;
  if (error_name_) error_name_(code, &name);
  if (error_text_) error_text_(code, &text);
  std::string message = call + " failed: " + (name ? name : "an error without a name") + " (" +
                        std::to_string(static_cast<int>(code)) + ")";
  if (text) message += std::string(", ") + text;
  if (const char* advice = advice_for(code)) message += std::string("; ") + advice;
  return message;
}

}  // namespace stepfuse::cuda
