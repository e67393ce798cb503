"""A network and its loop: one thread runs both, any number of threads hand it samples."""

from __future__ import annotations

import itertools
import os
import sys
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, TypeVar

from stepfuse import _core
from stepfuse.arguments import require_seconds
from stepfuse.backends.base import Backend
from stepfuse.backends.device_samples import DeviceSample
from stepfuse.bundle.model_info import ModelInfo
from stepfuse.errors import EngineClosed
from stepfuse.lora.adapters import PLAIN, AdapterSet, chosen
from stepfuse.requests.resolution import ResolvedRequest
from stepfuse.samplers.table import StepTable
from stepfuse.serving.at_exit import close_at_exit
from stepfuse.serving.config import CostCurve, Serving
from stepfuse.serving.in_flight import InFlightSample
from stepfuse.serving.loop_thread import LoopThread
from stepfuse.serving.reporting import Observer
from stepfuse.serving.stats import EngineStats

T = TypeVar("T")


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
        self._pid = os.getpid()
        self._loop_options = partial(serving.loop_options, rowwise=backend.rowwise)
        self._core = _core.Server(backend.stepper, self._loop_options(), serving.max_queue, check)
        self._closed_with_this = _core.Lease(self._core)
        self._loop = LoopThread(self._core, backend, inline=self.inline)
        self.adapters, self._device_samples = backend.adapters, backend.device_samples
        self._shape = info.shape
        self._nulls = [spec.value(name, None) for name, spec in info.cond.items()]
        self._tables: weakref.WeakKeyDictionary[StepTable, _core.Table] = weakref.WeakKeyDictionary()
        self._cost: CostCurve | None = None
        self._ids = itertools.count(1)
        self.interrupted = False
        if not self.inline:
            close_at_exit(self)

    @property
    def closed(self) -> bool:
        """Whether the network is gone."""
        return self._loop.closed

    @property
    def phase(self) -> _core.Phase:
        """How far it has come; ``serving/loop_thread.py`` says more."""
        return self._core.phase

    def new_id(self) -> int:
        """An id for one sample of this service."""
        return next(self._ids)

    def submit(self, sample: InFlightSample, wait: float | None) -> None:
        """Queues a sample.

        Args:
            sample: The sample.
            wait: Seconds to wait for room in the queue, None to queue it however full; on the loop's own thread there
                is no waiting.

        Raises:
            QueueFull: If there was no room.
            DeadlineError: If its deadline cannot be met.
            EngineClosed: If the service is closed.
            ValueError: If it could never run.
            RuntimeError: If the loop has no thread, and none can be started.
        """
        self.require_open()
        self.interrupted = False
        self._loop.ensure()
        if self._core.submit(self._request(sample), 0.0 if wait and self._core.on_loop_thread else wait):
            self._loop.go_on()

    def submit_all(self, samples: Sequence[InFlightSample]) -> None:
        """Queues samples together, so that they begin together as far as rows go, however full the queue is.

        Raises:
            EngineClosed: If the service is closed.
            ValueError: If one of them could never run.
            RuntimeError: If the loop has no thread, and none can be started.
        """
        self.require_open()
        self.interrupted = False
        self._loop.ensure()
        if self._core.submit_all([self._request(sample) for sample in samples]):
            self._loop.go_on()

    def _request(self, sample: InFlightSample) -> _core.Request:
        request = sample.request
        sample.adapters = chosen(self.adapters, request.lora)
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
            adapters=_number(sample.adapters),
            device_copy=None if sample.on_device is None else sample.on_device.buffer,
            owner=sample,
        )

    def device_sample(self) -> DeviceSample | None:
        """Memory of a GPU for one sample; None where samples are on the host, or the GPU has none left."""
        return None if self._device_samples is None else self._device_samples.take()

    def cancel(self, ids: Iterable[int]) -> None:
        """Withdraws samples; those that have ended are left as they are."""
        self._require_own_process()
        if self._core.cancel(list(ids)):
            with suppress(RuntimeError):  # no thread can be started: they are gone when the next one is
                self._loop.go_on()

    def lease(self, ids: Sequence[int]) -> _core.Lease:
        """Withdraws these samples when it is let go."""
        return _core.Lease(self._core, ids)

    def open(self, gate: _core.Gate) -> None:
        """Lets the samples behind a gate do one more step."""
        self._require_own_process()
        if self._core.open(gate):
            self._loop.go_on()

    def call_back(self, callback: Callable[..., T], *arguments: Any) -> T:
        """Calls what samples wait for, from which the service cannot be closed."""
        return callback(*arguments)

    def run_alone(self, work: Callable[[Backend], T]) -> T:
        """Runs ``work`` on the loop's thread when no sample is queued or in flight.

        Raises:
            RuntimeError: If called on that thread, or it cannot be started.
            EngineClosed: If the service is closed.
        """
        self.require_other_thread()
        return self._loop.run_alone(work)

    def iterations_alone(self, requests: Sequence[ResolvedRequest]) -> int:
        """Forwards that these samples would take if the engine had no others."""
        conditioned = [request.cond is not None for request in requests]
        tables = [self._compiled(request.table) for request in requests]
        options, once = self._loop_options(self._cost), _core.CostCurve(1.0, 0.0)
        start, even = [0.0] * len(requests), [0] * len(requests)
        sets = [chosen(self.adapters, request.lora) for request in requests]
        replayed = _core.replay(
            tables,
            start,
            conditioned,
            even,
            self.serving.row_limit,
            options,
            once,
            adapters=[_number(one) for one in sets],
        )
        return int(replayed["counters"]["forwards"])

    def observe(self, observer: Observer | None) -> None:
        """Has each iteration reported to ``observer`` too, on the loop's thread."""
        self._loop.observe(observer)

    def set_cost(self, cost: CostCurve) -> None:
        """Has the planner go by this cost of a forward."""
        self._require_own_process()
        self._cost = cost
        self._core.set_cost(_core.CostCurve(cost.fixed, cost.row))

    def stats(self) -> EngineStats:
        """The loop's counters, as of the last finished iteration, and how many requests were refused."""
        self._require_own_process()
        return EngineStats.of(self._core.status())

    @contextmanager
    def awaited(self) -> Iterator[None]:
        """A caller's wait for samples: notes if Ctrl-C ends it, so that the interpreter's exit gives them up."""
        try:
            yield
        except KeyboardInterrupt:
            self.interrupted = True
            raise

    def refuse(self, *, abort: bool = False) -> None:
        """Takes no more samples; those that it has are finished, or with ``abort`` withdrawn."""
        if self._pid == os.getpid():
            self._loop.refuse(abort=abort)

    def close(self, *, abort: bool = False, timeout: float | None = None) -> None:
        """Runs what is queued to its end, or withdraws it, then frees the network; closing twice is fine.

        Args:
            abort: Whether what is queued is withdrawn.
            timeout: Seconds for that, as in ``Engine.close``; None: as long as it takes.

        Raises:
            RuntimeError: If called on the loop's thread, or from a callback that samples wait for.
            ValueError: If ``timeout`` is negative or not a number.
        """
        require_seconds("timeout", timeout)
        if self._pid != os.getpid():
            return  # the thread and the network are the parent's
        self.require_closable()
        with self.awaited():
            self._loop.end(abort=abort, timeout=timeout)

    def require_closable(self) -> None:
        """Refuses to be closed by what it waits for.

        Raises:
            RuntimeError: If called on the loop's thread, or from a callback that samples wait for.
        """
        self.require_other_thread()
        if self._is_calling_back():
            raise RuntimeError("the engine cannot be closed from a callback that its samples wait for")

    def _is_calling_back(self) -> bool:
        """Whether this thread is in ``call_back``. Its stack says so: a mark could be left behind by Ctrl-C."""
        frame = sys._getframe()
        while frame is not None:
            if frame.f_code is Service.call_back.__code__ and frame.f_locals["self"] is self:
                return True
            frame = frame.f_back  # type: ignore[assignment]
        return False

    def require_other_thread(self) -> None:
        """Refuses a call that would wait for itself.

        Raises:
            RuntimeError: If called on the loop's thread, or in a forked process.
        """
        self._require_own_process()
        if self._core.on_loop_thread:
            raise RuntimeError(
                "the engine is running on this thread: its own denoiser and the callbacks of its futures may submit to"
                " it, but neither wait for it nor close it"
            )

    def _require_own_process(self) -> None:
        if self._pid != os.getpid():
            raise RuntimeError(
                f"the engine belongs to process {self._pid}, this is its fork {os.getpid()}: load it after the fork"
            )

    def require_open(self) -> None:
        """Refuses a call when the service takes no more samples.

        Raises:
            EngineClosed: If it is closed.
            RuntimeError: If called in a forked process.
        """
        self._require_own_process()
        if self._core.phase != _core.Phase.Open:
            raise EngineClosed("the engine is closed")

    def _compiled(self, table: StepTable) -> _core.Table:
        compiled = self._tables.get(table)
        if compiled is None:
            compiled = self._tables[table] = _core.Table(table.rows, table.init_scale, table.adaptive_of(self._shape))
        return compiled


def _number(adapters: AdapterSet | None) -> int:
    return PLAIN if adapters is None else adapters.number
