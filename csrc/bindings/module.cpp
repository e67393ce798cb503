#include "bindings.h"

namespace {

namespace py = pybind11;

PyObject* make_by_call(PyTypeObject* type, PyObject* arguments, PyObject* named) {
  for (PyTypeObject* base = type->tp_base; base; base = base->tp_base)
    if (base->tp_new != type->tp_new && base->tp_new != &make_by_call) return base->tp_new(type, arguments, named);
  return nullptr;  // unreachable: pybind11's own type is a base of all
}

// Class.__new__ would give an object that nothing has initialised. With another tp_new than its base's a class is made
// by a call of it alone.
void refuse_bare_objects(const py::handle& scope) {
  for (const auto& [name, value] : scope.attr("__dict__").cast<py::dict>()) {
    if (py::isinstance<py::module_>(value)) {
      refuse_bare_objects(value);
    } else if (PyType_Check(value.ptr()) && Py_TYPE(value.ptr()) == py::detail::get_internals().default_metaclass) {
      auto* type = reinterpret_cast<PyTypeObject*>(value.ptr());
      type->tp_new = &make_by_call;
      PyType_Modified(type);
    }
  }
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = "The compiled core of stepfuse: the fused step, the noise, the planner and the loop.";
  stepfuse::bind_errors(m);
  stepfuse::bind_step(m);
  stepfuse::bind_noise(m);
  stepfuse::bind_stepper(m);
  stepfuse::bind_planner(m);
  stepfuse::bind_events(m);
  stepfuse::bind_request(m);
  stepfuse::bind_server(m);
  stepfuse::bind_replay(m);
  stepfuse::bind_cuda(m);
  stepfuse::bind_cuda_loop(m);
  refuse_bare_objects(m);
  py::module_::import("atexit").attr("register")(
      py::cpp_function([] { stepfuse::ending_thread = std::this_thread::get_id(); }));
}
