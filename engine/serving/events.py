"""How a sample ends, in the words of Python."""

from __future__ import annotations

from concurrent.futures import CancelledError
from typing import Any

from stepfuse import _core
from stepfuse.errors import DeadlineError, DenoiserError, EngineClosed, QueueFull, RequestTimeout
from stepfuse.samplers.table import COLUMNS
from stepfuse.serving.inflight import Draw

#: What logs and traces call it.
OUTCOMES = {
    _core.EventKind.Finished: "finished",
    _core.EventKind.Failed: "failed",
    _core.EventKind.Cancelled: "cancelled",
    _core.EventKind.Expired: "expired",
}


def error_of(kind: _core.EventKind, draw: Draw, step: int, cause: Any, *, aborted: bool) -> BaseException | None:
    """What the owner of a sample is given instead of it; None if it is there.

    Args:
        kind: Of the event that ended it.
        draw: The sample.
        step: Steps done, or the one that failed.
        cause: Of a failure: what the network raised, or the coefficients (16,) of the step that was not finite.
        aborted: Whether the engine was closed without drawing what was queued.
    """
    steps = len(draw.request.table)
    if kind == _core.EventKind.Finished:
        return None
    if kind == _core.EventKind.Expired:
        done = f"{step} of {steps} steps are done"
        return RequestTimeout(f"{draw} was not finished within its timeout of {draw.request.timeout:g} s: {done}")
    if kind == _core.EventKind.Cancelled:
        return EngineClosed(f"the engine was closed before {draw} was finished") if aborted else CancelledError()
    if isinstance(cause, StopIteration | StopAsyncIteration):  # as these, it would end loops instead of failing them
        error = DenoiserError(f"the network raised {cause!r} for {draw}")
        error.__cause__ = cause
        return error
    if isinstance(cause, BaseException):
        return cause
    values = ", ".join(f"{name} = {value:g}" for name, value in zip(COLUMNS, cause, strict=True))
    return DenoiserError(
        f"{draw} went non-finite at step {step} of {steps} ({draw.request.table.sampler}): the network's output must be"
        f" finite. The step was {values}"
    )


def public_form(error: BaseException) -> BaseException:
    """What the core raises, as the class that users catch; anything else as it is."""
    for theirs, ours in (
        (_core.QueueFull, QueueFull),
        (_core.DeadlineError, DeadlineError),
        (_core.Closed, EngineClosed),
    ):
        if isinstance(error, theirs):
            return ours(str(error))
    return error
