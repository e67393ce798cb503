#include "callbacks.h"

namespace stepfuse {

namespace {

// The exception that is being handled, as what a bound function would raise.
py::object in_python() {
  try {
    py::cpp_function([] { throw; })();
  } catch (const py::error_already_set& raised) {
    return raised.value();
  }
  return py::none();
}

py::object error_of(const Event& event) {
  if (!event.error) return event.kind == EventKind::Failed ? py::object(row_to_array(event.row)) : py::none();
  try {
    std::rethrow_exception(event.error);
  } catch (const py::error_already_set& raised) {
    return raised.value();
  } catch (...) {
    return in_python();
  }
}

}  // namespace

void PyListener::on_events(const std::vector<Event>& events) {
  py::gil_scoped_acquire gil;
  py::list tuples;
  for (const Event& event : events)
    tuples.append(
        py::make_tuple(event.kind, event.id, event.step, error_of(event), event.wait_seconds, event.run_seconds));
  on_events_(tuples);
}

void bind_events(py::module_& m) {
  py::enum_<EventKind>(m, "EventKind")
      .value("Stepped", EventKind::Stepped)
      .value("Finished", EventKind::Finished)
      .value("Failed", EventKind::Failed)
      .value("Cancelled", EventKind::Cancelled)
      .value("Expired", EventKind::Expired)
      .value("Retried", EventKind::Retried);
}

}  // namespace stepfuse
