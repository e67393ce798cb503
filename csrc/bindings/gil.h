// Python's lock, given up and taken by threads that may outlive the interpreter.
//
// Up to 3.13 CPython ends a thread that asks for the lock while the interpreter ends by unwinding its stack, which no
// destructor survives: the process would abort. From 3.14 on it has such a thread wait for the end of the process, and
// so does this for all of them.
#pragma once

#include <pybind11/pybind11.h>

#include <atomic>
#include <chrono>
#include <thread>
#include <utility>

namespace stepfuse {

namespace py = pybind11;

[[noreturn]] inline void wait_for_the_end_of_the_process() {
  while (true) std::this_thread::sleep_for(std::chrono::hours(1));
}

inline bool interpreter_ends() {
#if PY_VERSION_HEX >= 0x030d0000
  return Py_IsFinalizing() || !Py_IsInitialized();
#else
  return _Py_IsFinalizing() || !Py_IsInitialized();
#endif
}

// The thread that ends the interpreter, which holds the lock all the while. Set by a handler of Python's atexit.
inline std::atomic<std::thread::id> ending_thread{};

// What `work` returns, which takes the lock or runs Python. No object with a destructor may lie between this frame and
// Python's: the unwinding is caught here, and never goes on.
template <class Work>
auto or_wait_for_the_end(Work work) -> decltype(work()) {
  try {
    return work();
  } catch (...) {
    wait_for_the_end_of_the_process();
  }
}

// In place of py::gil_scoped_release.
class ReleasedGil {
 public:
  ReleasedGil() : ends_interpreter_(interpreter_ends()), state_(PyEval_SaveThread()) {}
  ReleasedGil(const ReleasedGil&) = delete;
  ReleasedGil& operator=(const ReleasedGil&) = delete;
  ~ReleasedGil() {
    if (!ends_interpreter_ && interpreter_ends()) wait_for_the_end_of_the_process();
    or_wait_for_the_end([this] { PyEval_RestoreThread(state_); });
  }

 private:
  bool ends_interpreter_;  // had the lock while the interpreter ended: is the thread that ends it
  PyThreadState* state_;
};

// In place of py::gil_scoped_acquire; may be nested.
class AcquiredGil {
 public:
  AcquiredGil() {
    if (interpreter_ends() && ending_thread != std::this_thread::get_id()) wait_for_the_end_of_the_process();
    state_ = or_wait_for_the_end([] { return PyGILState_Ensure(); });
  }
  AcquiredGil(const AcquiredGil&) = delete;
  AcquiredGil& operator=(const AcquiredGil&) = delete;
  ~AcquiredGil() { PyGILState_Release(state_); }

 private:
  PyGILState_STATE state_{};
};

// Calls Python with the lock held; throws py::error_already_set.
template <class... Arguments>
py::object call_python(const py::object& function, Arguments&&... arguments) {
  const py::tuple given = py::make_tuple(std::forward<Arguments>(arguments)...);
  PyObject* found = or_wait_for_the_end([&] { return PyObject_CallObject(function.ptr(), given.ptr()); });
  if (!found) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(found);
}

}  // namespace stepfuse
