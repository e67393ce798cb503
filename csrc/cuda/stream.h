// Streams and events. Nothing runs on the default stream.
#pragma once

#include "context.h"

namespace stepfuse::cuda {

class Event {
 public:
  // One without timing costs its stream less.
  explicit Event(ContextPtr context, bool timing = false);
  CUevent get() const { return event_.get(); }
  bool passed() const;  // without waiting
  void synchronize() const;
  double seconds_since(const Event& start) const;  // on the device; both with timing, recorded, passed

 private:
  Owned<CUevent, &Driver::cuEventDestroy> event_;
};

class Stream {
 public:
  explicit Stream(ContextPtr context);
  static Stream borrow(ContextPtr context, CUstream stream);  // of another owner: never destroyed here

  CUstream get() const { return borrowed_ ? borrowed_ : stream_.get(); }
  const ContextPtr& context() const { return context_; }
  void synchronize() const;
  void record(const Event& event) const;
  void wait(const Event& event) const;  // the stream waits, not the caller

 private:
  Stream() = default;

  ContextPtr context_;
  Owned<CUstream, &Driver::cuStreamDestroy> stream_;
  CUstream borrowed_ = nullptr;
};

}  // namespace stepfuse::cuda
