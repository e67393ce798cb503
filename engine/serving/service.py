"""A network and its loop: one thread runs both, any number of threads hand it samples to draw."""

from __future__ import annotations

import itertools
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from stepfuse import _core
from stepfuse.backends.base import Denoiser, Place
from stepfuse.bundle.model_info import ModelInfo
from stepfuse.errors import DeadlineError, EngineClosed, QueueFull
from stepfuse.requests.resolution import SampleRequest
from stepfuse.samplers.table import StepTable
from stepfuse.serving.config import CostCurve, Serving
from stepfuse.serving.events import OUTCOMES, error_of, public_form
from stepfuse.serving.inflight import Draw, Owner
from stepfuse.serving.tracing import trace_request

T = TypeVar("T")

logger = logging.getLogger("stepfuse")


class Service:
    """Calls from any thread are safe; those that wait for the loop are refused on the loop's own thread.

    Args:
        info: What the network is.
        place: Makes the loop and the network, in the memory of a device.
        serving: How samples share it.
        check: Whether the loop's invariants are checked after each turn.
    """

    def __init__(self, info: ModelInfo, place: Place, serving: Serving, *, check: bool = False) -> None:
        self.serving = serving
        placed = place(info, serving, check)
        self._core, self._forward = placed.server, placed.forward
        self._denoiser: Denoiser | None = placed.denoiser
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

    def submit(self, draw: Draw, wait: float) -> int:
        """Queues a sample; returns the id by which it can be withdrawn.

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
        return self._enter([draw], lambda requests: self._core.submit(requests[0], wait))[0]

    def submit_all(self, draws: Sequence[Draw]) -> list[int]:
        """Queues samples together, so that they begin together as far as rows go, however full the queue is.

        Returns:
            Their ids.

        Raises:
            EngineClosed: If the service is closed.
            ValueError: If one of them could never run.
        """
        return self._enter(draws, self._core.submit_all)

    def _enter(self, draws: Sequence[Draw], queue: Callable[[list[_core.Request]], bool]) -> list[int]:
        self._require_own_process()
        if self._closing:
            raise EngineClosed("the engine is closed")
        requests = [self._request(draw) for draw in draws]
        ids = [draw.id for draw in draws]
        self._draws.update(zip(ids, draws, strict=True))
        try:
            if queue(requests):
                self._start()
        except BaseException as error:  # Ctrl-C may come when they are queued already
            self._forget(ids)
            self.cancel(ids)
            refusal = public_form(error)
            with self._refusals_lock:
                self._queue_refusals += isinstance(refusal, QueueFull)
                self._deadline_refusals += isinstance(refusal, DeadlineError)
            raise refusal from None
        return ids

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
            request.negative_cond or self._nulls,
            priority=request.priority,
            deadline=deadline,
            timeout=request.timeout,
            watched=draw.watched,
            gate=draw.gate,
            known=request.known,
        )

    def cancel(self, ids: Iterable[int]) -> None:
        """Withdraws samples; those that have ended are left as they are."""
        self._require_own_process()
        for id in ids:
            if self._core.cancel(id):
                self._start()

    def open(self, gate: _core.Gate) -> None:
        """Lets the samples behind a gate do their next turn."""
        self._require_own_process()
        if self._core.open(gate):
            self._start()

    def run_alone(self, work: Callable[[Denoiser], T]) -> T:
        """Runs ``work`` on the loop's thread when nothing is left to draw.

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
        self._require_own_process()
        self._cost = cost
        self._core.set_cost(_core.CostCurve(cost.fixed, cost.row))

    def status(self) -> dict[str, Any]:
        """The loop's counters, as of the last finished turn, how many wait and run, and how many were refused."""
        self._require_own_process()
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
            self._core.cancel_all()
        if self._draws:
            self._start()  # once too often does no harm, and makes up for a start that Ctrl-C has swallowed
        with self._all_ended:
            self._all_ended.wait_for(lambda: not self._draws)
        self._executor.shutdown(wait=True)
        denoiser, self._denoiser = self._denoiser, None
        self._forward = _refuse
        if denoiser is not None:
            denoiser.close()

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
            compiled = self._tables[table] = _core.Table(table.rows, table.init_scale, table.adaptive)
        return compiled

    def _start(self) -> None:
        try:
            self._executor.submit(self._drive)
        except RuntimeError:  # the interpreter ends: nobody will run what is queued
            self._closing = self._aborting = True
            self._core.close()
            self._core.cancel_all()
            self._core.run(_refuse, self._happened)

    def _drive(self) -> None:
        self._thread_id = threading.get_ident()
        try:
            self._network()
            self._core.run(self._forward, self._happened)
        except BaseException as error:  # a bug of ours: nobody may be left waiting
            draws = [draw for id in list(self._draws) if (draw := self._draws.get(id)) is not None]
            for draw in draws:
                self._end(draw, "failed", error, 0.0, 0.0)
            self._tell_turn_over({draw.owner: None for draw in draws})
            names = ", ".join(draw.name for draw in draws)
            self._log(
                logging.CRITICAL,
                "the loop failed with %s, and all its requests with it",
                _text_of(error, repr),
                request_id=names,
            )
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
                    text = "a forward of %d requests raised %s: each is tried alone"
                    self._log(logging.WARNING, text, step, _text_of(cause, repr), request_id=", ".join(retried))
                continue
            owners[draw.owner] = None
            if kind == _core.EventKind.Stepped:
                self._tell(draw.owner.stepped, draw, step)
            else:
                error = error_of(kind, draw, step, cause, aborted=self._aborting)
                self._end(draw, OUTCOMES[kind], error, waited, ran)
        self._tell_turn_over(owners)

    def _end(self, draw: Draw, outcome: str, error: BaseException | None, waited: float, ran: float) -> None:
        level = logging.WARNING if outcome in ("failed", "expired") else logging.DEBUG
        facts = {"request_id": draw.name, "outcome": outcome, "wait_seconds": waited, "run_seconds": ran}
        message, arguments = "request %s %s after %.3f s in the queue and %.3f s of drawing", [draw.name, outcome]
        if error is None:
            self._log(level, message, *arguments, waited, ran, **facts)
        else:
            self._log(level, message + ": %s", *arguments, waited, ran, _text_of(error), **facts)
        self._tell(trace_request, draw.name, draw.request.table, draw.context, outcome, error, waited, ran)
        self._tell(draw.owner.ended, draw, error)
        self._forget([draw.id])

    def _tell_turn_over(self, owners: Iterable[Owner]) -> None:
        for owner in owners:
            self._tell(owner.turn_over)

    def _tell(self, what: Callable[..., None], *arguments: Any) -> None:
        """Whatever an owner's callback raises is its own: others wait for this thread."""
        try:
            what(*arguments)
        except BaseException as error:
            self._log(
                logging.ERROR, "a callback raised %s on the engine's thread", _text_of(error, repr), request_id=""
            )

    def _log(self, level: int, message: str, *arguments: Any, **facts: Any) -> None:
        """Whatever the application's handlers and filters raise is its own, too."""
        with suppress(BaseException):
            if logger.isEnabledFor(level):
                logger.log(level, message, *arguments, extra=facts)

    def _forget(self, ids: Iterable[int]) -> None:
        for id in ids:
            self._draws.pop(id, None)
        if self._closing:
            with self._all_ended:
                self._all_ended.notify_all()


def _text_of(error: BaseException, form: Callable[[object], str] = str) -> str:
    """For a log record, which must not keep the error: its traceback holds the arrays of those who waited."""
    try:
        return form(error)
    except BaseException:  # of a class whose texts raise
        return type(error).__name__


def _refuse(rows: int) -> None:
    raise EngineClosed("the engine is closed")
