// The driver, opened at run time. Every call checks its result and throws; no other file here handles error codes.
#pragma once

#include <memory>
#include <stdexcept>
#include <string>

#include "api.h"

namespace stepfuse::cuda {

struct CudaError : std::runtime_error {
  CudaError(CUresult code, const std::string& message) : std::runtime_error(message), code(code) {}
  bool out_of_memory() const { return code == CUDA_ERROR_OUT_OF_MEMORY; }

  CUresult code;
};

// Needs a driver of at least this version, as 1000 * major + 10 * minor.
struct Feature {
  const char* name;
  int version;
};

constexpr Feature kGraphs{"stepfuse's CUDA path", 12000};
constexpr Feature kWhileNodes{"a loop on the device (a conditional WHILE node)", 12040};

class Driver;

// One function of the driver.
template <class... Args>
class Call {
 public:
  void operator()(Args... args) const;  // throws CudaError
  CUresult result(Args... args) const;  // the result itself; throws only if the driver has no such function

 private:
  friend class Driver;
  const Driver* driver_ = nullptr;
  const char* name_ = nullptr;
  CUresult (*function_)(Args...) = nullptr;
};

// Never closed: the driver's own threads and exit handlers outlive this object.
class Driver {
 public:
  // Throws CudaError if there is no driver, no device, or a driver older than CUDA 12.0.
  static std::shared_ptr<const Driver> load(const std::string& path = "libcuda.so.1");

  Driver(const Driver&) = delete;
  Driver& operator=(const Driver&) = delete;

  int version() const { return version_; }
  bool has(const Feature& feature) const { return version_ >= feature.version; }
  void require(const Feature& feature) const;  // throws CudaError, naming the version needed and the one found

  // What is known of a failed call: its name, the driver's name and text of the error, and what to do about it.
  std::string describe(CUresult code, const std::string& call) const;
  [[noreturn]] void missing(const char* call) const;

#define STEPFUSE_MEMBER(name, exported, version, ...) Call<__VA_ARGS__> name;
  STEPFUSE_CUDA_CALLS(STEPFUSE_MEMBER)
#undef STEPFUSE_MEMBER

 private:
  Driver() = default;

  int version_ = 0;
  CUresult (*error_name_)(CUresult, const char**) = nullptr;
  CUresult (*error_text_)(CUresult, const char**) = nullptr;
};

std::string version_text(int version);  // 12040: "12.4"

template <class... Args>
CUresult Call<Args...>::result(Args... args) const {
  if (!function_) driver_->missing(name_);
  return function_(args...);
}

template <class... Args>
void Call<Args...>::operator()(Args... args) const {
  const CUresult code = result(args...);
  if (code != CUDA_SUCCESS) throw CudaError(code, driver_->describe(code, name_));
}

}  // namespace stepfuse::cuda
