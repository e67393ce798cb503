"""The thread of a stage that takes one request after the other."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from functools import partial

from stepfuse.pipeline.engines import seconds_left
from stepfuse.serving.threads import start_daemon


class StageThread:
    """Started when there is first something to do; a daemon, as an engine's own thread.

    What callers of any thread do here takes no lock, since Ctrl-C could leave one held.

    Args:
        name: The thread's.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._threads: list[threading.Thread] = []  # of two that are started at once one ends
        self._runs = threading.Lock()  # taken on these threads, where no signal comes
        self._news: queue.SimpleQueue[None] = queue.SimpleQueue()

    @property
    def is_current(self) -> bool:
        """Whether the calling thread is this one."""
        return threading.current_thread() in self._threads

    def ensure(self, run: Callable[[], None]) -> None:
        """Has it run, which the thread alone refers to: what lets all of this go is not kept by it.

        Raises:
            RuntimeError: If the system has no thread left.
        """
        if not any(thread.is_alive() for thread in self._threads):
            start_daemon(partial(self._enter, run), self._name, self._threads.append)

    def _enter(self, run: Callable[[], None]) -> None:
        if self._runs.acquire(blocking=False):
            try:
                run()
            finally:
                self._runs.release()

    def wake(self) -> None:
        """Ends ``wait``, or the next one."""
        self._news.put(None)

    def wait(self, until: float | None) -> None:
        """Waits, on this thread, for ``wake`` or this time on ``time.monotonic()``."""
        try:
            self._news.get(timeout=seconds_left(until))
            while True:  # one look is enough for all that came meanwhile
                self._news.get_nowait()
        except queue.Empty:
            pass

    def ended(self, until: float | None) -> bool:
        """Waits for its end; False if that is not before this time on ``time.monotonic()``."""
        for thread in list(self._threads):
            thread.join(seconds_left(until))
        return not any(thread.is_alive() for thread in self._threads)
