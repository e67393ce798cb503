"""A network and its loop: one thread runs both, any number of threads hand it samples to draw."""

from __future__ import annotations

import itertools
import logging
import math
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from stepfuse import _core
from stepfuse.backends.buffers import Buffers
from stepfuse.bundle import ModelInfo
from stepfuse.cond import CondInput
from stepfuse.errors import DeadlineError, DenoiserError, EngineClosed, QueueFull, RequestTimeout
from stepfuse.policy import CostCurve, Serving
from stepfuse.request import SampleRequest
from stepfuse.steptable import COLUMNS, StepTable
from stepfuse.tracing import trace_request

Images = npt.NDArray[np.float32]
T = TypeVar("T")

logger = logging.getLogger("stepfuse")

_OUTCOMES = {
    _core.EventKind.Finished: "finished",
    _core.EventKind.Failed: "failed",
    _core.EventKind.Cancelled: "cancelled",
    _core.EventKind.Expired: "expired",
}


class Denoiser(Protocol):
    """What a back end is: a network on the loop's memory."""

    def forward(self, rows: int) -> None:
        """Turns the first ``rows`` rows of the inputs into predictions."""

    def close(self) -> None:
        """Frees the network."""


class Owner(Protocol):
    """Who wants a sample. All of it is called on the loop's thread, which waits: be quick, and raise nothing."""

    def stepped(self, draw: Draw, step: int) -> None:
        """A watched sample has done ``step`` steps; its preview holds still until this returns."""

    def ended(self, draw: Draw, error: BaseException | None) -> None:
        """The sample is in ``draw.x``, or will never be."""

    def turn_over(self) -> None:
        """All that happened in a turn has been told."""


@dataclass(eq=False)
class Draw:
    """One sample on its way through the loop.

    Attributes:
        request: What to draw.
        x: Shape (C, H, W): starting noise if ``has_noise``; the state, and in the end the sample.
        has_noise: Whether ``x`` holds the noise already.
        owner: Is told what becomes of it.
        x0: Shape (C, H, W), takes the clean sample implied so far; None if nobody looks.
        gate: Lets one turn through at a time.
        watched: Whether ``owner.stepped`` is called.
        context: Tracing context of the caller.
        index: Its place among the samples of one call; None if it is a request of its own.
        id: Unique in its service.
    """

    request: SampleRequest
    x: Images
    has_noise: bool
    owner: Owner
    x0: Images | None = None
    gate: _core.Gate | None = None
    watched: bool = False
    context: Any = None
    index: int | None = None
    id: int = 0

    @property
    def name(self) -> str:
        """What logs and traces call it."""
        return self.request.name or str(self.id)

    def __str__(self) -> str:
        return f"request {self.name}" if self.index is None else f"sample {self.index}"


class Service:
    """Calls from any thread are safe; those that wait for the loop are refused on the loop's own thread.

    Args:
        info: What the network is.
        make_denoiser: Makes the back end on the loop's memory.
        serving: How samples share it.
        check: Whether the loop's invariants are checked after each turn.
    """

    def __init__(
        self, info: ModelInfo, make_denoiser: Callable[[Buffers], Denoiser], serving: Serving, *, check: bool = False
    ) -> None:
        self.serving = serving
        elements, integer = math.prod(info.shape), info.timestep_dtype == "int64"
        cond_bytes = [_row_bytes(spec) for spec in info.cond.values()]
        options = serving.loop_options()
        self._core = _core.Server(elements, integer, cond_bytes, serving.max_rows, options, serving.max_queue, check)
        self._denoiser: Denoiser | None = make_denoiser(Buffers.of(self._core, info))
        self._nulls = [spec.value(name, None) for name, spec in info.cond.items()]
        self._tables: weakref.WeakKeyDictionary[StepTable, _core.Table] = weakref.WeakKeyDictionary()
        self._draws: dict[int, Draw] = {}
        self._cost: CostCurve | None = None
        self._ids = itertools.count(1)
        self._pid = os.getpid()
        self._thread_id: int | None = None
        self._awaited_threads: set[int] = set()  # samples rest until these return from their callbacks
        self._refusals_lock = threading.Lock()
        self._queue_refusals = self._deadline_refusals = 0
        self._closing = self._aborting = False
        self._all_ended = threading.Condition()
        # Not a daemon: the interpreter joins it before it tears down what the loop's thread still needs.
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="stepfuse")

    @property
    def closed(self) -> bool:
        """Whether the network is gone."""
        return self._denoiser is None

    def submit(self, draw: Draw, wait: float) -> None:
        """Queues a sample.

        Args:
            draw: The sample.
            wait: Seconds to wait for room in the queue; on the loop's own thread there is no waiting.

        Raises:
            QueueFull: If there was no room.
            DeadlineError: If its deadline cannot be met.
            EngineClosed: If the service is closed.
            ValueError: If it could never run.
        """
        wait = 0.0 if self._on_loop_thread() else wait
        self._enter([draw], lambda requests: self._core.submit(requests[0], wait))

    def submit_all(self, draws: Sequence[Draw]) -> None:
        """Queues samples together, so that they begin together as far as rows go, however full the queue is.

        Raises:
            EngineClosed: If the service is closed.
            ValueError: If one of them could never run.
        """
        self._enter(draws, self._core.submit_all)

    def _enter(self, draws: Sequence[Draw], queue: Callable[[list[_core.Request]], bool]) -> None:
        self._require_own_process()
        if self._closing:
            raise EngineClosed("the engine is closed")
        requests = [self._request(draw) for draw in draws]
        self._draws.update((draw.id, draw) for draw in draws)
        try:
            start = queue(requests)
        except BaseException as error:
            self._forget(draw.id for draw in draws)
            refusal = _ours(error)
            with self._refusals_lock:
                self._queue_refusals += isinstance(refusal, QueueFull)
                self._deadline_refusals += isinstance(refusal, DeadlineError)
            raise refusal from None
        if start:
            self._start()

    def _request(self, draw: Draw) -> _core.Request:
        request = draw.request
        deadline = None if request.deadline is None else request.deadline - time.monotonic()
        if deadline is not None and deadline <= 0:
            raise ValueError(f"deadline must lie ahead on time.monotonic(), it passed {-deadline:.3f} s ago")
        draw.id = next(self._ids)
        return self._core.request(
            draw.id,
            self._compiled(request.table),
            request.seed,
            draw.has_noise,
            draw.x,
            draw.x0,
            request.cond or [],
            self._nulls,
            priority=request.priority,
            deadline=deadline,
            timeout=request.timeout,
            watched=draw.watched,
            gate=draw.gate,
        )

    def cancel(self, draws: Iterable[Draw]) -> None:
        """Withdraws samples; those that have ended are left as they are."""
        started = [self._core.cancel(draw.id) for draw in draws]
        if any(started):
            self._start()

    def open(self, gate: _core.Gate) -> None:
        """Lets the samples behind a gate do their next turn."""
        if self._core.open(gate):
            self._start()

    def run_alone(self, work: Callable[[Denoiser], T]) -> T:
        """Runs ``work`` on the loop's thread while the loop rests.

        Raises:
            RuntimeError: If called on that thread.
            EngineClosed: If the service is closed.
        """
        self.require_other_thread()

        def run() -> T:
            self._thread_id = threading.get_ident()
            try:
                return work(self._network())
            finally:
                self._thread_id = None

        try:
            future = self._executor.submit(run)
        except RuntimeError as error:
            raise EngineClosed("the engine is closed") from error
        return future.result()

    def turns_alone(self, requests: Sequence[SampleRequest]) -> int:
        """Forwards that these samples take if nobody else is there."""
        told = [request.cond is not None for request in requests]
        tables = [self._compiled(request.table) for request in requests]
        options, once = self.serving.loop_options(self._cost), _core.CostCurve(1.0, 0.0)
        start, even = [0.0] * len(requests), [0] * len(requests)
        replayed = _core.replay(tables, start, told, even, self.serving.max_rows, options, once)
        return int(replayed["counters"]["forwards"])

    def set_cost(self, cost: CostCurve) -> None:
        """Tells the planner what a forward costs."""
        self._cost = cost
        self._core.set_cost(_core.CostCurve(cost.fixed, cost.row))

    def status(self) -> dict[str, Any]:
        """The loop's counters, as of the last finished turn, how many wait and run, and how many were refused."""
        refusals = {"queue_refusals": self._queue_refusals, "deadline_refusals": self._deadline_refusals}
        return self._core.status() | refusals

    def close(self, *, abort: bool = False) -> None:
        """Draws what is queued, or withdraws it, then frees the network; closing twice is fine.

        Raises:
            RuntimeError: If called on the loop's thread, or from a callback that samples wait for.
        """
        if self._pid != os.getpid():
            return  # the thread and the network are the parent's
        self.require_other_thread()
        if threading.get_ident() in self._awaited_threads:
            raise RuntimeError("the engine cannot be closed from a callback that its samples wait for")
        self._closing = True
        self._core.close()
        if abort:
            self._aborting = True
            if self._core.cancel_all():
                self._start()
        with self._all_ended:
            self._all_ended.wait_for(lambda: not self._draws)
        self._executor.shutdown(wait=True)
        if self._denoiser is not None:
            self._denoiser.close()
        self._denoiser = None

    @contextmanager
    def waits_for_this_thread(self) -> Iterator[None]:
        """While samples rest until this thread goes on, it cannot close the service."""
        here, outer = threading.get_ident(), set(self._awaited_threads)
        self._awaited_threads.add(here)
        try:
            yield
        finally:
            if here not in outer:
                self._awaited_threads.discard(here)

    def require_other_thread(self) -> None:
        """Refuses a call that would wait for itself.

        Raises:
            RuntimeError: If called on the loop's thread, or in a forked process.
        """
        self._require_own_process()
        if self._on_loop_thread():
            raise RuntimeError(
                "the engine is running on this thread: its own denoiser and the callbacks of its futures may submit to"
                " it, but neither wait for it nor close it"
            )

    def _require_own_process(self) -> None:
        if self._pid != os.getpid():
            raise RuntimeError(
                f"the engine belongs to process {self._pid}, this is its fork {os.getpid()}: load it after the fork"
            )

    def _on_loop_thread(self) -> bool:
        return threading.get_ident() == self._thread_id

    def _network(self) -> Denoiser:
        if self._denoiser is None:
            raise EngineClosed("the engine is closed")
        return self._denoiser

    def _compiled(self, table: StepTable) -> _core.Table:
        compiled = self._tables.get(table)
        if compiled is None:
            compiled = self._tables[table] = _core.Table(table.rows, table.init_scale)
        return compiled

    def _start(self) -> None:
        try:
            self._executor.submit(self._drive)
        except RuntimeError:  # the interpreter ends: nobody will run what is queued
            self._aborting = True
            self._core.cancel_all()
            self._core.run(lambda rows: None, self._happened)

    def _drive(self) -> None:
        self._thread_id = threading.get_ident()
        try:
            self._core.run(self._network().forward, self._happened)
        except BaseException as error:  # a bug of ours: nobody may be left waiting
            names = [draw.name for draw in self._draws.values()]
            logger.exception("the loop failed, and all its requests with it", extra={"request_id": ", ".join(names)})
            for id in list(self._draws):
                self._end(id, "failed", error, 0.0, 0.0)
        finally:
            self._thread_id = None  # when this thread has ended, another may be given its number

    def _happened(self, events: Sequence[tuple[_core.EventKind, int, int, Any, float, float]]) -> None:
        owners: dict[Owner, None] = {}
        retried: list[str] = []
        for kind, id, step, cause, waited, ran in events:
            draw = self._draws.get(id)
            if draw is None:
                continue
            if kind == _core.EventKind.Retried:
                retried.append(draw.name)
                if len(retried) == step:
                    self._log_retry(retried, cause)
                continue
            owners[draw.owner] = None
            if kind == _core.EventKind.Stepped:
                draw.owner.stepped(draw, step)
            else:
                self._end(id, _OUTCOMES[kind], self._error(kind, draw, step, cause), waited, ran)
        for owner in owners:
            owner.turn_over()

    def _log_retry(self, names: Sequence[str], cause: BaseException) -> None:
        facts = {"request_id": ", ".join(names)}
        logger.warning("a forward of %d requests raised %r: each is tried alone", len(names), cause, extra=facts)

    def _end(self, id: int, outcome: str, error: BaseException | None, waited: float, ran: float) -> None:
        draw = self._draws[id]
        level = logging.WARNING if outcome in ("failed", "expired") else logging.DEBUG
        if logger.isEnabledFor(level):
            facts = {"request_id": draw.name, "outcome": outcome, "wait_seconds": waited, "run_seconds": ran}
            message = "request %s %s after %.3f s in the queue and %.3f s of drawing"
            arguments: list[Any] = [draw.name, outcome, waited, ran]
            if error is not None:
                message += ": %s"
                arguments.append(error)
            logger.log(level, message, *arguments, extra=facts)
        trace_request(draw.name, draw.request.table, draw.context, outcome, error, waited, ran)
        draw.owner.ended(draw, error)
        self._forget([id])

    def _forget(self, ids: Iterable[int]) -> None:
        for id in ids:
            del self._draws[id]
        if self._closing:
            with self._all_ended:
                self._all_ended.notify_all()

    def _error(self, kind: _core.EventKind, draw: Draw, step: int, cause: Any) -> BaseException | None:
        steps = len(draw.request.table)
        if kind == _core.EventKind.Finished:
            return None
        if kind == _core.EventKind.Expired:
            timeout = draw.request.timeout
            return RequestTimeout(
                f"{draw} was not finished within its timeout of {timeout:g} s: {step} of {steps} steps are done"
            )
        if kind == _core.EventKind.Cancelled:
            if self._aborting:
                return EngineClosed(f"the engine was closed before {draw} was finished")
            return CancelledError()
        if isinstance(cause, BaseException):
            return cause
        values = ", ".join(f"{name} = {value:g}" for name, value in zip(COLUMNS, cause, strict=True))
        return DenoiserError(
            f"{draw} went non-finite at step {step} of {steps} ({draw.request.table.sampler}): the"
            f" network's output must be finite. The step was {values}"
        )


def _ours(error: BaseException) -> BaseException:
    """The public form of what the core raises."""
    for theirs, ours in (
        (_core.QueueFull, QueueFull),
        (_core.DeadlineError, DeadlineError),
        (_core.Closed, EngineClosed),
    ):
        if isinstance(error, theirs):
            return ours(str(error))
    return error


def _row_bytes(spec: CondInput) -> int:
    return math.prod(spec.shape) * np.dtype(spec.dtype).itemsize
