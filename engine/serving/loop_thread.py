"""The thread that runs an engine's loop: when it starts, what it does beside samples, and how it ends.

The core says how far an engine has come, and only ever goes on (``_core.Phase``):

    Open ── close() ──> Draining ── close(abort=True), a timeout, Ctrl-C at exit ──> Aborting

An engine has ended when it is no longer open, the core holds no sample and no thread is in its loop; its network is
freed then. A thread that does not come back from its network in time is abandoned: its samples are failed, and what it
refers to is freed when it does come back, if ever.

The core alone holds samples. A call of it is atomic for Ctrl-C and other signals, so a sample is either there, with all
that its end needs, or it is not: nothing has to be put right afterwards.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar

from stepfuse import _core
from stepfuse.backends.base import Backend
from stepfuse.errors import EngineClosed
from stepfuse.serving.events import error_of_closing
from stepfuse.serving.reporting import Observer, Reporter
from stepfuse.serving.threads import start_daemon

T = TypeVar("T")

logger = logging.getLogger("stepfuse")

#: Seconds for a forward in progress to return after a drain has run out of time.
GRACE = 1.0


class LoopThread:
    """Runs one core. The thread refers to this, not to the service that users hold, so that it ends with that one.

    A daemon: the interpreter's exit drains it by ``serving/at_exit.py``, which unlike a join can be interrupted.

    Args:
        core: The loop.
        backend: The network.
        inline: Whether there is no thread, and the loop runs on the callers'.
    """

    def __init__(self, core: _core.Server, backend: Backend, *, inline: bool) -> None:
        self._core = core
        self._backend: Backend | None = backend
        self._enqueue = backend.enqueue
        self._reporter = Reporter(core, inline=inline)
        self._inline = inline
        self._thread: threading.Thread | None = None
        self._work: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._abandoned = False

    def observe(self, observer: Observer | None) -> None:
        """Has each iteration reported to ``observer`` too."""
        self._reporter.observer = observer

    @property
    def closed(self) -> bool:
        """Whether the network is gone."""
        return self._backend is None

    @property
    def backend(self) -> Backend:
        """The network.

        Raises:
            EngineClosed: If it is gone.
        """
        backend = self._backend
        if backend is None:
            raise EngineClosed("the engine is closed")
        return backend

    def ensure(self) -> None:
        """Has a thread in the loop, before anything is queued for it.

        Raises:
            RuntimeError: If none can be started; the next call tries again.
        """
        if self._inline or self._core.served:
            return
        # No lock, which Ctrl-C could leave behind: of two threads that are started at once one ends.
        if self._thread is None or not self._thread.is_alive():
            start_daemon(self._serve, "stepfuse", self._on_start)

    def _on_start(self, thread: threading.Thread) -> None:
        self._thread = thread

    def go_on(self) -> None:
        """Runs what there is to do, where the core says that no thread does."""
        if self._inline:
            self.run()
        else:
            self.ensure()

    def run(self) -> None:
        """Runs what there is to do on this thread."""
        self._core.run(self._enqueue, self._reporter.on_events, self._reporter.on_failure)

    def _serve(self) -> None:
        self._core.serve(self._enqueue, self._reporter.on_events, self._reporter.on_failure, self._on_idle)

    def run_alone(self, work: Callable[[Backend], T]) -> T:
        """Runs ``work`` on the loop's thread when nothing is left to sample.

        Raises:
            EngineClosed: If the engine is closed, or is before it comes to that.
        """
        backend, result = self.backend, Future[T]()
        if self._core.phase != _core.Phase.Open:
            raise EngineClosed("the engine is closed")
        self.ensure()
        self._work.append((result, lambda: work(backend)))
        self._core.poke()
        return result.result()

    def _on_idle(self) -> None:
        while self._work:
            result, work = self._work[0]
            try:
                if self._core.phase == _core.Phase.Aborting:
                    raise EngineClosed("the engine is closed")
                made = work()
            except BaseException as error:
                _settle(result.set_exception, error)
            else:
                _settle(result.set_result, made)
            self._work.popleft()

    def refuse(self, *, abort: bool) -> None:
        """Takes no more samples, and with ``abort`` withdraws those that there are; waits for nothing."""
        if not abort:
            self._core.close()
            return
        self._core.abort()
        if (backend := self._backend) is not None:
            backend.interrupt()

    def end(self, *, abort: bool, timeout: float | None) -> None:
        """Ends the loop and frees the network; where that takes longer than ``timeout`` seconds it abandons both."""
        if self._abandoned:
            return
        if not (abort or self._inline):
            self.refuse(abort=False)
            if self._wait(timeout):
                return self._free()
        self.refuse(abort=True)
        if self._wait(timeout if abort else GRACE):
            return self._free()
        self._abandon()

    def _wait(self, seconds: float | None) -> bool:
        if self._core.close():  # samples are left, and no thread is in the loop
            try:
                self.go_on()
            except RuntimeError:  # nor can one be started
                self.run()
        return self._core.wait_ended(seconds)

    def _free(self) -> None:
        backend, self._backend = self._backend, None
        self._enqueue = _refuse
        if (thread := self._thread) is not None:
            thread.join(GRACE)  # it has left the loop
        if backend is not None:
            backend.close()

    def _abandon(self) -> None:
        self._backend = None
        logger.error("the engine was closed while its network was still running: its thread is abandoned")
        self._reporter.fail([*self._core.owners(), *self._reporter.reported], error_of_closing)
        for result, _ in list(self._work):
            _settle(result.set_exception, EngineClosed("the engine is closed"))
        self._abandoned = True


def _settle(set_outcome: Callable[[Any], None], outcome: Any) -> None:
    with suppress(Exception):  # a thread that was abandoned has come back
        set_outcome(outcome)


def _refuse(rows: int) -> None:
    raise EngineClosed("the engine is closed")
