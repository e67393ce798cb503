#include "../core/loop/server.h"
#include "../cuda/driver.h"
#include "bindings.h"

namespace stepfuse {

namespace {

// A public exception type: stepfuse.<name>, a StepfuseError and a RuntimeError.
py::object error_type(py::module_& m, const char* name, const char* doc, const py::object& bases) {
  auto type = py::reinterpret_steal<py::object>(
      PyErr_NewExceptionWithDoc((std::string("stepfuse.") + name).c_str(), doc, bases.ptr(), nullptr));
  if (!type) throw py::error_already_set();
  m.attr(name) = type;
  return type;
}

PyObject* queue_full;
PyObject* engine_closed;
PyObject* deadline_error;
PyObject* cuda_error;

void translate(std::exception_ptr thrown) {
  try {
    if (thrown) std::rethrow_exception(thrown);
  } catch (const QueueFull& error) {
    PyErr_SetString(queue_full, error.what());
  } catch (const EngineClosed& error) {
    PyErr_SetString(engine_closed, error.what());
  } catch (const DeadlineError& error) {
    PyErr_SetString(deadline_error, error.what());
  } catch (const cuda::CudaError& error) {
    py::object value = py::handle(cuda_error)(error.what());
    value.attr("code") = static_cast<int>(error.code);
    value.attr("out_of_memory") = error.out_of_memory();
    PyErr_SetObject(cuda_error, value.ptr());
  }
}

}  // namespace

void bind_errors(py::module_& m) {
  const py::object base = error_type(m, "StepfuseError", "Any error of stepfuse's own.",
                                     py::reinterpret_borrow<py::object>(PyExc_Exception));
  const py::tuple bases = py::make_tuple(base, py::handle(PyExc_RuntimeError));
  queue_full =
      error_type(m, "QueueFull", "As many requests wait as may; the message says how many.", bases).release().ptr();
  engine_closed = error_type(m, "EngineClosed",
                             "The engine takes no more requests, or was closed before this one was finished.", bases)
                      .release()
                      .ptr();
  deadline_error =
      error_type(m, "DeadlineError", "A request's deadline cannot be met; the message holds the estimate.", bases)
          .release()
          .ptr();
  py::module_ sub = m.def_submodule("cuda");
  cuda_error =
      error_type(sub, "CudaError",
                 "A call of the CUDA driver failed; `code` is its number, `out_of_memory` whether that was why.", bases)
          .release()
          .ptr();
  py::register_exception_translator(&translate);
}

}  // namespace stepfuse
