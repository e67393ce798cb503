#include "memory.h"

namespace stepfuse::cuda {

DeviceBuffer::DeviceBuffer(ContextPtr context, std::size_t bytes) : context_(context), bytes_(bytes) {
  if (bytes == 0) throw std::invalid_argument("a buffer must have at least one byte");
  const Context::Scope scope(*context);
  const Driver& driver = context->driver();
  CUdeviceptr memory = 0;
  const CUresult code = driver.cuMemAlloc.result(&memory, bytes);
  if (code == CUDA_ERROR_OUT_OF_MEMORY) {
    std::size_t free = 0, total = 0;
    driver.cuMemGetInfo.result(&free, &total);
    throw CudaError(code, driver.describe(code, "cuMemAlloc") + "; asked for " + std::to_string(bytes) +
                              " bytes, of the GPU's " + std::to_string(total) + " there are " + std::to_string(free) +
                              " free: allow fewer rows, or stop what else uses this GPU");
  }
  if (code != CUDA_SUCCESS) throw CudaError(code, driver.describe(code, "cuMemAlloc"));
  memory_ = {std::move(context), memory};
  address_ = memory;
}

DeviceBuffer DeviceBuffer::borrow(ContextPtr context, CUdeviceptr address, std::size_t bytes) {
  DeviceBuffer borrowed;
  borrowed.context_ = std::move(context);
  borrowed.address_ = address;
  borrowed.bytes_ = bytes;
  return borrowed;
}

CUdeviceptr DeviceBuffer::at(std::size_t offset, std::size_t bytes) const {
  if (offset > bytes_ || bytes > bytes_ - offset)
    throw std::invalid_argument("a copy must stay within the buffer's " + std::to_string(bytes_) + " bytes, got " +
                                std::to_string(bytes) + " at " + std::to_string(offset));
  return address_ + offset;
}

void DeviceBuffer::upload(const Stream& stream, const void* from, std::size_t bytes, std::size_t offset) {
  const CUdeviceptr to = at(offset, bytes);
  const Stream::Turn turn(stream);
  const Context::Scope scope(*context_);
  context_->driver().cuMemcpyHtoDAsync(to, from, bytes, stream.get());
}

void DeviceBuffer::download(const Stream& stream, void* to, std::size_t bytes, std::size_t offset) const {
  const CUdeviceptr from = at(offset, bytes);
  const Stream::Turn turn(stream);
  const Context::Scope scope(*context_);
  context_->driver().cuMemcpyDtoHAsync(to, from, bytes, stream.get());
}

void DeviceBuffer::copy(const Stream& stream, const DeviceBuffer& from, std::size_t bytes, std::size_t offset) {
  const CUdeviceptr source = from.at(offset, bytes), target = at(0, bytes);
  const Stream::Turn turn(stream);
  const Context::Scope scope(*context_);
  context_->driver().cuMemcpyDtoDAsync(target, source, bytes, stream.get());
}

void reserve(std::unique_ptr<DeviceBuffer>& buffer, const Stream& stream, std::size_t bytes) {
  if (buffer && bytes <= buffer->bytes()) return;
  auto grown = std::make_unique<DeviceBuffer>(stream.context(), bytes);
  if (buffer) {
    grown->copy(stream, *buffer, buffer->bytes());
    stream.synchronize();
  }
  buffer = std::move(grown);
}

HostBuffer::HostBuffer(ContextPtr context, std::size_t bytes) : bytes_(bytes) {
  const Context::Scope scope(*context);
  void* memory = nullptr;
  context->driver().cuMemHostAlloc(&memory, bytes, 0);
  memory_ = {std::move(context), memory};
}

}  // namespace stepfuse::cuda
