"""OpenTelemetry spans, one a request, where the application traces."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

from stepfuse.samplers.table import StepTable

logger = logging.getLogger("stepfuse")


def current_context() -> Any:
    """The caller's tracing context, the parent of a request's span; None if the application does not trace."""
    api = _api()
    return None if api is None else api[0].get_current()


def trace_request(
    name: str, table: StepTable, context: Any, outcome: str, error: BaseException | None, waited: float, ran: float
) -> None:
    """Records a request that has just ended as a span from its submission to now. Raises nothing.

    Args:
        name: What messages call the request.
        table: Its sampler.
        context: That of its caller.
        outcome: ``finished``, or what else became of it.
        error: What it failed with; one that comes with the outcome ``cancelled`` is no failure.
        waited: Seconds in the queue.
        ran: Seconds from its first step.
    """
    api = _api()
    if api is None:
        return
    try:
        _record(api[1], name, table, context, None if outcome == "cancelled" else error, outcome, waited, ran)
    except Exception:  # of the application's sampler, processor or exporter: the loop's thread goes on without it
        logger.warning("request %s could not be traced", name, exc_info=True, extra={"request_id": name})


def _record(
    trace: Any,
    name: str,
    table: StepTable,
    context: Any,
    error: BaseException | None,
    outcome: str,
    waited: float,
    ran: float,
) -> None:
    end = time.time_ns()
    attributes = {
        "stepfuse.request_id": name,
        "stepfuse.sampler": table.sampler,
        "stepfuse.steps": len(table),
        "stepfuse.outcome": outcome,
        "stepfuse.wait_seconds": waited,
    }
    start = end - int((waited + ran) * 1e9)
    span = trace.get_tracer("stepfuse").start_span("stepfuse.draw", context, attributes=attributes, start_time=start)
    if error is not None and span.is_recording():
        span.record_exception(error, timestamp=end)
        span.set_status(trace.Status(trace.StatusCode.ERROR, str(error)))
    span.end(end)


def _api() -> tuple[Any, Any] | None:
    """OpenTelemetry's modules ``context`` and ``trace``; None where the application has not imported them itself.

    Without that it can have neither a span of its own nor anything that collects ours, and importing them here would
    only slow down the first request.
    """
    if "opentelemetry.trace" not in sys.modules:
        return None
    try:
        from opentelemetry import context, trace  # waits if another thread is in the middle of importing them
    except ImportError:
        return None
    return context, trace
