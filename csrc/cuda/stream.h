// Streams and events. Nothing runs on the default stream.
#pragma once

#include <memory>
#include <mutex>

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

// Which of several threads may enqueue on a stream: one at a time, and as often as it likes meanwhile.
class Turns {
 public:
  Turns() = default;
  virtual ~Turns() = default;
  Turns(const Turns&) = delete;
  Turns& operator=(const Turns&) = delete;

  void lock() {
    if (!mutex_.try_lock()) wait(mutex_);
  }
  void unlock() { mutex_.unlock(); }

 private:
  // Overridden where the thread that has the turn may need what this one holds.
  virtual void wait(std::recursive_mutex& mutex) { mutex.lock(); }

  std::recursive_mutex mutex_;
};

// Any number of threads may enqueue on it; what one enqueues within a `Turn` has nothing of the others in between.
class Stream {
 public:
  class Turn {
   public:
    explicit Turn(const Stream& stream) : turns_(stream.turns_), lock_(*turns_) {}

   private:
    std::shared_ptr<Turns> turns_;
    std::lock_guard<Turns> lock_;
  };

  explicit Stream(ContextPtr context, std::shared_ptr<Turns> turns = std::make_shared<Turns>());
  // Of another owner: never destroyed here.
  static Stream borrow(ContextPtr context, CUstream stream, std::shared_ptr<Turns> turns = std::make_shared<Turns>());
  Stream shared() const { return borrow(context_, get(), turns_); }  // the same stream, which this one owns

  CUstream get() const { return borrowed_ ? borrowed_ : stream_.get(); }
  const ContextPtr& context() const { return context_; }
  void synchronize() const;
  void record(const Event& event) const;
  void wait(const Event& event) const;  // the stream waits, not the caller

 private:
  Stream() = default;

  ContextPtr context_;
  std::shared_ptr<Turns> turns_;
  Owned<CUstream, &Driver::cuStreamDestroy> stream_;
  CUstream borrowed_ = nullptr;
};

}  // namespace stepfuse::cuda
