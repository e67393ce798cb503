// Memory of the device, and memory of the host that the device copies from and to while the host goes on.
#pragma once

#include <memory>

#include "stream.h"

namespace stepfuse::cuda {

class DeviceBuffer {
 public:
  // Throws CudaError if there is no memory, with the bytes asked for and the bytes that are free.
  DeviceBuffer(ContextPtr context, std::size_t bytes);
  static DeviceBuffer borrow(ContextPtr context, CUdeviceptr address, std::size_t bytes);  // of another owner

  CUdeviceptr get() const { return address_; }
  std::size_t bytes() const { return bytes_; }

  // From and to `offset`, which of `copy` is the other buffer's. The host's memory must stay unchanged until the copy
  // is done. Throw std::invalid_argument if it goes beyond the buffer.
  void upload(const Stream& stream, const void* from, std::size_t bytes, std::size_t offset = 0);
  void download(const Stream& stream, void* to, std::size_t bytes, std::size_t offset = 0) const;
  void copy(const Stream& stream, const DeviceBuffer& from, std::size_t bytes, std::size_t offset = 0);  // to offset 0

 private:
  DeviceBuffer() = default;
  CUdeviceptr at(std::size_t offset, std::size_t bytes) const;

  ContextPtr context_;
  Owned<CUdeviceptr, &Driver::cuMemFree> memory_;  // empty where it is borrowed
  CUdeviceptr address_ = 0;
  std::size_t bytes_ = 0;
};

// Grows the buffer to at least so many bytes. Its contents stay: they are copied if the memory has to move.
void reserve(std::unique_ptr<DeviceBuffer>& buffer, const Stream& stream, std::size_t bytes);

// Pinned: copies from and to it do not block the host.
class HostBuffer {
 public:
  HostBuffer(ContextPtr context, std::size_t bytes);

  void* data() const { return memory_.get(); }
  std::size_t bytes() const { return bytes_; }

 private:
  Owned<void*, &Driver::cuMemFreeHost> memory_;
  std::size_t bytes_;
};

}  // namespace stepfuse::cuda
