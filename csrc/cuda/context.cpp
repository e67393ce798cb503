#include "context.h"

#include <array>
#include <vector>

namespace stepfuse::cuda {

namespace {

thread_local int holders = 0;
thread_local std::vector<std::function<void()>> held;

}  // namespace

HeldReleases::HeldReleases() { ++holders; }

HeldReleases::~HeldReleases() {
  if (--holders > 0) return;
  for (const auto& release : std::exchange(held, {})) release();
}

bool HeldReleases::any() { return holders > 0; }

void HeldReleases::add(std::function<void()> release) { held.push_back(std::move(release)); }

Context::Context(std::shared_ptr<const Driver> driver, int device) : driver_(std::move(driver)) {
  int count = 0;
  driver_->cuDeviceGetCount(&count);
  if (device < 0 || device >= count)
    throw CudaError(CUDA_ERROR_INVALID_DEVICE, "device must be below the number of visible GPUs, " +
                                                   std::to_string(count) + ", got " + std::to_string(device));
  driver_->cuDeviceGet(&device_, device);
  std::array<char, 256> name{};
  driver_->cuDeviceGetName(name.data(), static_cast<int>(name.size()) - 1, device_);
  name_ = name.data();
  int major = 0, minor = 0;
  driver_->cuDeviceGetAttribute(&major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device_);
  driver_->cuDeviceGetAttribute(&minor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device_);
  compute_capability_ = 10 * major + minor;
  driver_->cuDeviceGetAttribute(&multiprocessors_, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, device_);
  driver_->cuDeviceGetAttribute(&cache_bytes_, CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE, device_);
  driver_->cuDevicePrimaryCtxRetain(&context_, device_);
}

Context::~Context() {
  if (context_) driver_->cuDevicePrimaryCtxRelease.result(device_);
}

std::shared_ptr<Context> Context::open(std::shared_ptr<const Driver> driver, int device) {
  return std::shared_ptr<Context>(new Context(std::move(driver), device));
}

Context::Scope::Scope(const Context& context) : context_(context) {
  const CUresult code = context.failed_release_.exchange(CUDA_SUCCESS);
  if (code != CUDA_SUCCESS)
    throw CudaError(code, context.driver_->describe(code, "releasing a handle before this call"));
  context.driver_->cuCtxPushCurrent(context.context_);
}

Context::Scope::~Scope() {
  CUcontext popped;
  context_.driver_->cuCtxPopCurrent.result(&popped);
}

MemoryInfo Context::memory() const {
  const Scope scope(*this);
  MemoryInfo info{};
  driver_->cuMemGetInfo(&info.free, &info.total);
  return info;
}

}  // namespace stepfuse::cuda
