#include "stream.h"

namespace stepfuse::cuda {

Event::Event(ContextPtr context, bool timing) {
  const Context::Scope scope(*context);
  CUevent event = nullptr;
  context->driver().cuEventCreate(&event, timing ? CU_EVENT_DEFAULT : CU_EVENT_DISABLE_TIMING);
  event_ = {std::move(context), event};
}

bool Event::passed() const {
  const Context::Scope scope(*event_.context());
  const CUresult code = event_.driver().cuEventQuery.result(event_.get());
  if (code == CUDA_SUCCESS || code == CUDA_ERROR_NOT_READY) return code == CUDA_SUCCESS;
  throw CudaError(code, event_.driver().describe(code, "cuEventQuery"));
}

void Event::synchronize() const {
  const Context::Scope scope(*event_.context());
  event_.driver().cuEventSynchronize(event_.get());
}

double Event::seconds_since(const Event& start) const {
  const Context::Scope scope(*event_.context());
  float milliseconds = 0;
  event_.driver().cuEventElapsedTime(&milliseconds, start.get(), get());
  return milliseconds * 1e-3;
}

Stream::Stream(ContextPtr context, std::shared_ptr<Turns> turns) : context_(context), turns_(std::move(turns)) {
  const Context::Scope scope(*context);
  CUstream stream = nullptr;
  context->driver().cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING);
  stream_ = {std::move(context), stream};
}

Stream Stream::borrow(ContextPtr context, CUstream stream, std::shared_ptr<Turns> turns) {
  Stream borrowed;
  borrowed.context_ = std::move(context);
  borrowed.turns_ = std::move(turns);
  borrowed.borrowed_ = stream;
  return borrowed;
}

void Stream::synchronize() const {
  const Turn turn(*this);
  const Context::Scope scope(*context_);
  context_->driver().cuStreamSynchronize(get());
}

void Stream::record(const Event& event) const {
  const Turn turn(*this);
  const Context::Scope scope(*context_);
  context_->driver().cuEventRecord(event.get(), get());
}

void Stream::wait(const Event& event) const {
  const Turn turn(*this);
  const Context::Scope scope(*context_);
  context_->driver().cuStreamWaitEvent(get(), event.get(), 0);
}

}  // namespace stepfuse::cuda
