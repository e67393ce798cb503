// A GPU's primary context, which torch and ONNX Runtime use too, and what owns the driver's handles in it.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "driver.h"

namespace stepfuse::cuda {

struct MemoryInfo {
  std::size_t free, total;  // bytes
};

class Context : public std::enable_shared_from_this<Context> {
 public:
  static std::shared_ptr<Context> open(std::shared_ptr<const Driver> driver, int device);
  ~Context();

  // While it lives this context is the calling thread's current one. Throws if a release has failed since the last
  // Scope, since destructors cannot throw.
  class Scope {
   public:
    explicit Scope(const Context& context);
    ~Scope();
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    const Context& context_;
  };

  const Driver& driver() const { return *driver_; }
  CUcontext handle() const { return context_; }
  int device() const { return device_; }
  const std::string& name() const { return name_; }
  int compute_capability() const { return compute_capability_; }  // times ten: 90 for 9.0
  int multiprocessors() const { return multiprocessors_; }
  int cache_bytes() const { return cache_bytes_; }  // of its second level, which all multiprocessors share
  MemoryInfo memory() const;

  // For destructors: calls `act` with the driver, in this context; the next Scope throws its error.
  template <class Act>
  void quietly(Act act) const noexcept {
    CUresult code = driver_->cuCtxPushCurrent.result(context_);
    if (code == CUDA_SUCCESS) {
      code = act(*driver_);
      CUcontext popped;
      driver_->cuCtxPopCurrent.result(&popped);
    }
    // At the end of the process the driver may have been unloaded before, and its handles with it.
    if (code != CUDA_SUCCESS && code != CUDA_ERROR_DEINITIALIZED) failed_release_ = code;
  }

 private:
  Context(std::shared_ptr<const Driver> driver, int device);

  std::shared_ptr<const Driver> driver_;
  CUdevice device_ = 0;
  CUcontext context_ = nullptr;
  std::string name_;
  int compute_capability_ = 0, multiprocessors_ = 0, cache_bytes_ = 0;
  mutable std::atomic<CUresult> failed_release_{CUDA_SUCCESS};
};

using ContextPtr = std::shared_ptr<const Context>;

// While one lives, what its thread lets go of is released when the last of them ends: a release, which the garbage
// collector may bring about at any time, would make a capture by this thread invalid.
class HeldReleases {
 public:
  HeldReleases();
  ~HeldReleases();
  HeldReleases(const HeldReleases&) = delete;
  HeldReleases& operator=(const HeldReleases&) = delete;

  static bool any();  // of the calling thread
  static void add(std::function<void()> release);
};

// A handle that is destroyed once.
template <class T, Call<T> Driver::* Destroy>
class Owned {
 public:
  Owned() = default;
  Owned(ContextPtr context, T handle) : context_(std::move(context)), handle_(handle) {}
  Owned(Owned&& other) noexcept : context_(std::move(other.context_)), handle_(std::exchange(other.handle_, T{})) {}
  Owned& operator=(Owned&& other) noexcept {
    std::swap(context_, other.context_);
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~Owned() {
    if (!handle_) return;
    const auto release = [context = context_, handle = handle_] {
      context->quietly([handle](const Driver& driver) { return (driver.*Destroy).result(handle); });
    };
    HeldReleases::any() ? HeldReleases::add(release) : release();
  }

  T get() const { return handle_; }
  const ContextPtr& context() const { return context_; }
  const Driver& driver() const { return context_->driver(); }

 private:
  ContextPtr context_;
  T handle_{};
};

}  // namespace stepfuse::cuda
