"""A network and its loop: one thread runs both, any number of threads hand it samples."""

from __future__ import annotations

import itertools
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from stepfuse import _core
from stepfuse.backends.base import Backend
from stepfuse.bundle.model_info import ModelInfo
from stepfuse.display import printable
from stepfuse.errors import DeadlineError, EngineClosed, QueueFull
from stepfuse.requests.resolution import ResolvedRequest
from stepfuse.samplers.table import StepTable
from stepfuse.serving.config import CostCurve, Serving
from stepfuse.serving.events import OUTCOMES, error_of
from stepfuse.serving.in_flight import InFlightSample, Progress, ResultHandle
from stepfuse.serving.stats import EngineStats
from stepfuse.serving.tracing import trace_request

T = TypeVar("T")

logger = logging.getLogger("stepfuse")


class Service:
    """Calls from any thread are safe; those that wait for the loop are refused on the loop's own thread.

    Args:
        info: What the network is.
        backend: The network, and the stepper that its loop takes.
        serving: How samples share it.
        check: Whether the loop's invariants are checked after each iteration.
    """

    #: Whether the loop runs on the thread of the caller, as in a subclass that has no thread of its own.
    inline = False

    def __init__(self, info: ModelInfo, backend: Backend, serving: Serving, *, check: bool = False) -> None:
        self.serving = serving
        self._core = _core.Server(backend.stepper, serving.loop_options(), serving.max_queue, check)
        self._forward = backend.enqueue
        self._backend: Backend | None = backend
        self._nulls = [spec.value(name, None) for name, spec in info.cond.items()]
        self._tables: weakref.WeakKeyDictionary[StepTable, _core.Table] = weakref.WeakKeyDictionary()
        self._samples: dict[int, InFlightSample] = {}
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
        return self._backend is None

    def new_id(self) -> int:
        """An id for one sample of this service."""
        return next(self._ids)

    def submit(self, sample: InFlightSample, wait: float) -> None:
        """Queues a sample.

        Args:
            sample: The sample.
            wait: Seconds to wait for room in the queue; on the loop's own thread there is no waiting.

        Raises:
            QueueFull: If there was no room.
            DeadlineError: If its deadline cannot be met.
            EngineClosed: If the service is closed.
            ValueError: If it could never run.
        """
        with self._registered([sample]) as [request]:
            if self._core.submit(request, 0.0 if self._on_loop_thread() else wait):
                self._start()

    def submit_all(self, samples: Sequence[InFlightSample]) -> None:
        """Queues samples together, so that they begin together as far as rows go, however full the queue is.

        Raises:
            EngineClosed: If the service is closed.
            ValueError: If one of them could never run.
        """
        with self._registered(samples) as requests:
            if self._core.submit_all(requests):
                self._start()

    @contextmanager
    def _registered(self, samples: Sequence[InFlightSample]) -> Iterator[list[_core.Request]]:
        """The samples as the loop takes them; they are withdrawn if what is done with them raises."""
        self._require_own_process()
        if self._closing:
            raise EngineClosed("the engine is closed")
        requests = [self._request(sample) for sample in samples]
        ids = [sample.id for sample in samples]
        self._samples.update(zip(ids, samples, strict=True))
        try:
            yield requests
        except BaseException as error:  # Ctrl-C may come when they are queued already
            self._forget(ids)
            self.cancel(ids)
            with self._refusals_lock:
                self._queue_refusals += isinstance(error, QueueFull)
                self._deadline_refusals += isinstance(error, DeadlineError)
            raise

    def _request(self, sample: InFlightSample) -> _core.Request:
        request = sample.request
        deadline = None if request.deadline is None else request.deadline - time.monotonic()
        if deadline is not None and deadline <= 0:
            raise ValueError(f"deadline must lie ahead on time.monotonic(), it passed {-deadline:.3f} s ago")
        return self._core.request(
            sample.id,
            self._compiled(request.table),
            request.seed,
            sample.has_noise,
            sample.x,
            sample.x0,
            request.cond or [],
            request.negative_cond or self._nulls,
            priority=request.priority,
            deadline=deadline,
            timeout=request.timeout,
            watched=sample.watched,
            gate=sample.gate,
            known_region=request.known_region,
        )

    def cancel(self, ids: Iterable[int]) -> None:
        """Withdraws samples; those that have ended are left as they are."""
        self._require_own_process()
        for id in ids:
            if self._core.cancel(id):
                self._start()

    def open(self, gate: _core.Gate) -> None:
        """Lets the samples behind a gate do one more step."""
        self._require_own_process()
        if self._core.open(gate):
            self._start()

    def run_alone(self, work: Callable[[Backend], T]) -> T:
        """Runs ``work`` on the loop's thread when no sample is queued or in flight.

        Raises:
            RuntimeError: If called on that thread.
            EngineClosed: If the service is closed.
        """
        self.require_other_thread()

        def run() -> T:
            self._thread_id = threading.get_ident()
            try:
                return work(self._require_backend())
            finally:
                self._thread_id = None

        try:
            future = self._executor.submit(run)
        except RuntimeError as error:
            raise EngineClosed("the engine is closed") from error
        return future.result()

    def iterations_alone(self, requests: Sequence[ResolvedRequest]) -> int:
        """Forwards that these samples would take if the engine had no others."""
        conditioned = [request.cond is not None for request in requests]
        tables = [self._compiled(request.table) for request in requests]
        options, once = self.serving.loop_options(self._cost), _core.CostCurve(1.0, 0.0)
        start, even = [0.0] * len(requests), [0] * len(requests)
        replayed = _core.replay(tables, start, conditioned, even, self.serving.row_limit, options, once)
        return int(replayed["counters"]["forwards"])

    def set_cost(self, cost: CostCurve) -> None:
        """Has the planner go by this cost of a forward."""
        self._require_own_process()
        self._cost = cost
        self._core.set_cost(_core.CostCurve(cost.fixed, cost.row))

    def stats(self) -> EngineStats:
        """The loop's counters, as of the last finished iteration, and how many requests were refused."""
        self._require_own_process()
        return EngineStats.of(
            self._core.status(), queue_refusals=self._queue_refusals, deadline_refusals=self._deadline_refusals
        )

    def close(self, *, abort: bool = False) -> None:
        """Runs what is queued to its end, or withdraws it, then frees the network; closing twice is fine.

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
        if self._samples:
            self._start()  # once too often does no harm, and makes up for a start that Ctrl-C has swallowed
        with self._all_ended:
            self._all_ended.wait_for(lambda: not self._samples)
        self._executor.shutdown(wait=True)
        backend, self._backend = self._backend, None
        self._forward = _refuse
        if backend is not None:
            backend.close()

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

    def _require_backend(self) -> Backend:
        if self._backend is None:
            raise EngineClosed("the engine is closed")
        return self._backend

    def _compiled(self, table: StepTable) -> _core.Table:
        compiled = self._tables.get(table)
        if compiled is None:
            compiled = self._tables[table] = _core.Table(table.rows, table.init_scale, table.adaptive)
        return compiled

    def _start(self) -> None:
        try:
            self._executor.submit(self._drive)
        except RuntimeError:  # the interpreter ends: no thread will run what is queued
            self._closing = self._aborting = True
            self._core.close()
            self._core.cancel_all()
            self._core.run(_refuse, self._on_events)

    def _drive(self) -> None:
        self._thread_id = threading.get_ident()
        try:
            self._require_backend()
            self._core.run(self._forward, self._on_events)
        except BaseException as error:  # a bug of ours: no caller may be left waiting
            self._fail_all(error)
        finally:
            self._thread_id = None  # when this thread has ended, another may be given its number

    def _fail_all(self, error: BaseException) -> None:
        samples = [sample for id in list(self._samples) if (sample := self._samples.get(id)) is not None]
        made: dict[ResultHandle, list[Progress]] = {}
        for sample in samples:
            self._record_end(sample, "failed", error, 0.0, 0.0)
            made.setdefault(sample.handle, []).append(Progress(sample, 0, ended=True, error=error))
        names = ", ".join(sample.name for sample in samples)
        text = "the loop failed with %s, and all its requests with it"
        self._log(logging.CRITICAL, text, _text_of(error, repr), request_id=names)
        self._report(made)

    def _on_events(self, events: Sequence[tuple[_core.EventKind, int, int, Any, float, float]]) -> None:
        made: dict[ResultHandle, list[Progress]] = {}
        retried: list[str] = []
        for kind, id, step, cause, waited, ran in events:
            sample = self._samples.get(id)
            if sample is None:
                continue
            if kind == _core.EventKind.Retried:
                retried.append(sample.name)
                if len(retried) == step:
                    text = "a forward of %d requests raised %s: each is tried alone"
                    self._log(logging.WARNING, text, step, _text_of(cause, repr), request_id=", ".join(retried))
                continue
            ended = kind != _core.EventKind.Stepped
            error = None
            if ended:
                error = error_of(kind, sample, step, cause, aborted=self._aborting, inline=self.inline)
                self._record_end(sample, OUTCOMES[kind], error, waited, ran)
            made.setdefault(sample.handle, []).append(Progress(sample, step, ended, error))
        self._report(made)

    def _report(self, made: Mapping[ResultHandle, Sequence[Progress]]) -> None:
        """Hands each result handle its samples' progress, and lets those go that have ended."""
        for handle, of_handle in made.items():
            self._call(handle.on_progress, of_handle)
            self._forget([one.sample.id for one in of_handle if one.ended])

    def _record_end(
        self, sample: InFlightSample, outcome: str, error: BaseException | None, waited: float, ran: float
    ) -> None:
        """Logs and traces that a sample has ended."""
        level = logging.WARNING if outcome in ("failed", "expired") else logging.DEBUG
        facts = {"request_id": sample.name, "outcome": outcome, "wait_seconds": waited, "run_seconds": ran}
        message, arguments = "request %s %s after %.3f s in the queue and %.3f s of sampling", [sample.name, outcome]
        if error is None:
            self._log(level, message, *arguments, waited, ran, **facts)
        else:
            self._log(level, message + ": %s", *arguments, waited, ran, _text_of(error), **facts)
        self._call(trace_request, sample.name, sample.request.table, sample.context, outcome, error, waited, ran)

    def _call(self, callback: Callable[..., None], *arguments: Any) -> None:
        """A callback's exceptions are its own: other requests wait for this thread."""
        try:
            callback(*arguments)
        except BaseException as error:
            self._log(
                logging.ERROR, "a callback raised %s on the engine's thread", _text_of(error, repr), request_id=""
            )

    def _log(self, level: int, message: str, *arguments: Any, **facts: Any) -> None:
        """So are the exceptions of the application's log handlers and filters."""
        with suppress(BaseException):
            if logger.isEnabledFor(level):
                logger.log(level, message, *arguments, extra=facts)

    def _forget(self, ids: Iterable[int]) -> None:
        for id in ids:
            self._samples.pop(id, None)
        if self._closing:
            with self._all_ended:
                self._all_ended.notify_all()


def _text_of(error: BaseException, form: Callable[[object], str] = str) -> str:
    """For a log record, which must not keep the error: its traceback holds the arrays of callers that waited."""
    try:
        return printable(form(error), 2000)
    except BaseException:  # of a class whose texts raise
        return type(error).__name__


def _refuse(rows: int) -> None:
    raise EngineClosed("the engine is closed")
