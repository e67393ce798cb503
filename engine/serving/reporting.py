"""What an iteration has made of its samples, handed to their result handles, logs and traces."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from stepfuse import _core
from stepfuse.display import MESSAGE, printable
from stepfuse.samplers.table import StepTable
from stepfuse.serving.events import OUTCOMES, error_of
from stepfuse.serving.in_flight import InFlightSample, Progress, ResultHandle
from stepfuse.serving.tracing import trace_request

logger = logging.getLogger("stepfuse")

Event = tuple[_core.EventKind, Any, int, Any, float, float]

#: Takes what an iteration has made of the samples that are watched or have ended, and keeps none of it.
Observer = Callable[[Sequence[Progress]], None]


class Reporter:
    """The loop's listener. It knows no samples but those that events are of: the core holds them all.

    Args:
        core: The loop.
        inline: Whether the network runs on the caller's own thread.
    """

    def __init__(self, core: _core.Server, *, inline: bool) -> None:
        self._core = core
        self._inline = inline
        #: Samples whose handles are being called, or were last: of a thread that does not come back they are lost.
        self.reported: list[InFlightSample] = []
        #: Called with each iteration before the result handles are.
        self.observer: Observer | None = None

    def on_events(self, events: Sequence[Event]) -> None:
        """Reports an iteration. Called on the loop's thread."""
        made: dict[ResultHandle, list[Progress]] = {}
        retried: list[str] = []
        aborted = self._core.phase == _core.Phase.Aborting
        for kind, sample, step, cause, waited, ran in events:
            if sample.ended:
                continue
            if kind == _core.EventKind.Retried:
                retried.append(sample.name)
                if len(retried) == step:
                    text = "a forward of %d requests raised %s: each is tried alone"
                    _log(logging.WARNING, text, step, _text_of(cause, repr), request_id=", ".join(retried))
                continue
            ended = kind != _core.EventKind.Stepped
            error = None
            if ended:
                error = error_of(kind, sample, step, cause, aborted=aborted, inline=self._inline)
                record_end(sample.name, sample.request.table, sample.context, OUTCOMES[kind], error, waited, ran)
            made.setdefault(sample.handle, []).append(Progress(sample, step, ended, error))
        if self.observer is not None and made:
            _call(self.observer, [one for of_handle in made.values() for one in of_handle])
        self._report(made)

    def on_failure(self, samples: Sequence[InFlightSample], error: BaseException) -> None:
        """Fails all samples that there were: a bug of ours, and no caller may be left waiting."""
        names = ", ".join(dict.fromkeys(sample.name for sample in samples if not sample.ended))
        text = "the loop failed with %s, and all its requests with it"
        _log(logging.CRITICAL, text, _text_of(error, repr), request_id=names)
        self.fail(samples, lambda sample: error)

    def fail(self, samples: Iterable[InFlightSample], error_of: Callable[[InFlightSample], BaseException]) -> None:
        """Ends those that have not ended, each with its error."""
        made: dict[ResultHandle, list[Progress]] = {}
        for sample in dict.fromkeys(samples):
            if sample.ended:
                continue
            error = error_of(sample)
            record_end(sample.name, sample.request.table, sample.context, "failed", error, 0.0, 0.0)
            made.setdefault(sample.handle, []).append(Progress(sample, 0, ended=True, error=error))
        self._report(made)

    def _report(self, made: Mapping[ResultHandle, Sequence[Progress]]) -> None:
        self.reported = [one.sample for of_handle in made.values() for one in of_handle if one.ended]
        for handle, of_handle in made.items():
            for one in of_handle:
                one.sample.ended |= one.ended
            _call(handle.on_progress, of_handle)
        self.reported = []


def record_end(
    name: str, table: StepTable, context: Any, outcome: str, error: BaseException | None, waited: float, ran: float
) -> None:
    """Logs and traces that a request has ended; ``trace_request`` says what the arguments are."""
    level = logging.WARNING if outcome in ("failed", "expired") else logging.DEBUG
    facts = {"request_id": name, "outcome": outcome, "wait_seconds": waited, "run_seconds": ran}
    message, arguments = "request %s %s after %.3f s in the queue and %.3f s of sampling", [name, outcome]
    if error is None:
        _log(level, message, *arguments, waited, ran, **facts)
    else:
        _log(level, message + ": %s", *arguments, waited, ran, _text_of(error), **facts)
    _call(trace_request, name, table, context, outcome, error, waited, ran)


def _call(callback: Callable[..., None], *arguments: Any) -> None:
    """A callback's exceptions are its own: other requests wait for this thread."""
    try:
        callback(*arguments)
    except BaseException as error:
        _log(logging.ERROR, "a callback raised %s on the engine's thread", _text_of(error, repr), request_id="")


def _log(level: int, message: str, *arguments: Any, **facts: Any) -> None:
    """So are the exceptions of the application's log handlers and filters."""
    with suppress(BaseException):
        if logger.isEnabledFor(level):
            logger.log(level, message, *arguments, extra=facts)


def _text_of(error: BaseException, form: Callable[[object], str] = str) -> str:
    """For a log record, which must not keep the error: its traceback holds the arrays of callers that waited."""
    try:
        return printable(form(error), MESSAGE)
    except BaseException:  # of a class whose texts raise
        return type(error).__name__
