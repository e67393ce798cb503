"""Maps the loop's events to outcomes and exceptions."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import CancelledError
from typing import Any

from stepfuse import _core
from stepfuse.errors import DenoiserError, EngineClosed, RequestTimeout
from stepfuse.samplers.table import COLUMNS, StepTable
from stepfuse.serving.in_flight import InFlightSample

#: What logs and traces call it.
OUTCOMES = {
    _core.EventKind.Finished: "finished",
    _core.EventKind.Failed: "failed",
    _core.EventKind.Cancelled: "cancelled",
    _core.EventKind.Expired: "expired",
}

#: Raised in the caller's code, these and all that is no ``Exception`` (SystemExit, KeyboardInterrupt, asyncio's
#: CancelledError) would end a loop, a task or the process, or look as if the request had been withdrawn.
_MEANS_MORE = (StopIteration, StopAsyncIteration, CancelledError)


def error_of(
    kind: _core.EventKind, sample: InFlightSample, step: int, cause: Any, *, aborted: bool, inline: bool = False
) -> BaseException | None:
    """The exception that a sample's end is reported as; None if it finished.

    Args:
        kind: Of the event that ended it.
        sample: The sample.
        step: Steps done, or the one that failed.
        cause: Of a failure: what the network raised, or the coefficients (16,) of the step that was not finite.
        aborted: Whether the engine was closed without running what was queued.
        inline: Whether the network runs on the caller's own thread, where its KeyboardInterrupt is the caller's.
    """
    steps = len(sample.request.table)
    if kind == _core.EventKind.Finished:
        return None
    if kind == _core.EventKind.Expired:
        done = f"{step} of {steps} steps are done"
        return RequestTimeout(f"{sample} was not finished within its timeout of {sample.request.timeout:g} s: {done}")
    if kind == _core.EventKind.Cancelled:
        return error_of_closing(sample) if aborted else CancelledError()
    if isinstance(cause, BaseException) and inline:
        return cause
    if isinstance(cause, Exception) and not isinstance(cause, _MEANS_MORE):
        return cause
    if isinstance(cause, BaseException):
        error = DenoiserError(f"the network raised {cause!r} for {sample}")
        error.__cause__ = cause
        return error
    return DenoiserError(not_finite(sample, step, sample.request.table, cause))


def not_finite(sample: object, step: int, table: StepTable, row: Iterable[float]) -> str:
    """What is said of a sample whose state is not finite after a step with these coefficients, the first line's."""
    values = ", ".join(f"{name} = {value:g}" for name, value in zip(COLUMNS, row, strict=False))
    return (
        f"{sample} went non-finite at step {step} of {len(table)} ({table.sampler}): the network's output must be"
        f" finite. The step was {values}"
    )


def error_of_closing(sample: InFlightSample) -> EngineClosed:
    """The exception of a sample that its engine has given up."""
    return EngineClosed(f"the engine was closed before {sample} was finished")
