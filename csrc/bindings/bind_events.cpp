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

py::object in_python(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const py::error_already_set& raised) {
    return raised.value();
  } catch (...) {
    return in_python();
  }
}

py::object error_of(const Event& event) {
  if (event.error) return in_python(event.error);
  return event.kind == EventKind::Failed ? py::object(row_to_array(event.row)) : py::none();
}

py::object owner_of(const Event& event) {
  const auto* kept = static_cast<const KeptAlive*>(event.keep_alive.get());
  return kept && !kept->owner.is_none() ? kept->owner : py::int_(event.id);
}

// Nothing can be done about what a listener of last resort raises.
template <class... Arguments>
void call_or_report(const py::object& function, Arguments&&... arguments) {
  if (function.is_none()) return;
  try {
    call_python(function, std::forward<Arguments>(arguments)...);
  } catch (py::error_already_set& error) {
    error.discard_as_unraisable(function);
  }
}

}  // namespace

std::shared_ptr<void> keep_alive(py::tuple arrays, py::object owner) {
  return {new KeptAlive{std::move(arrays), std::move(owner)}, [](void* held) {
            const AcquiredGil gil;
            delete static_cast<KeptAlive*>(held);
          }};
}

void PyListener::on_events(std::vector<Event>& events) {
  const AcquiredGil gil;
  py::list tuples;
  for (const Event& event : events)
    tuples.append(py::make_tuple(event.kind, owner_of(event), event.step, error_of(event), event.wait_seconds,
                                 event.run_seconds));
  call_python(on_events_, tuples);
  events.clear();  // before a caller that waits can go on: its arrays are no longer held then
}

void PyListener::on_failure(const std::vector<Event>& events, const std::exception_ptr& error) {
  const AcquiredGil gil;
  py::list owners;
  for (const Event& event : events) owners.append(owner_of(event));
  call_or_report(on_failure_, owners, in_python(error));
}

void PyListener::on_idle() {
  const AcquiredGil gil;
  call_or_report(on_idle_);
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
