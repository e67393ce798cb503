"""Starting threads so that Ctrl-C harms neither them nor their start, and waiting for them at the end."""

from __future__ import annotations

import _thread
import queue
import threading
import time
from collections.abc import Callable


def start_daemon(run: Callable[[], None], name: str, on_start: Callable[[threading.Thread], None]) -> None:
    """Starts a daemon thread, and calls ``on_start`` with it when it runs.

    It is started from yet another thread: a signal that comes in ``Thread.start`` would leave it half done.

    Raises:
        RuntimeError: If the system has no thread left.
    """
    started: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

    def start() -> None:
        try:
            thread = _Daemon(target=run, name=name, daemon=True)
            thread.start()
            on_start(thread)
        except BaseException as error:
            started.put(error)
        else:
            started.put(None)

    _thread.start_new_thread(start, ())
    if (error := started.get()) is not None:
        raise error


def join_daemons(seconds: float) -> None:
    """Waits until all threads of ``start_daemon`` have ended, for so long at most."""
    until = time.monotonic() + seconds
    for thread in threading.enumerate():
        if isinstance(thread, _Daemon):
            thread.join(max(until - time.monotonic(), 0.0))


class _Daemon(threading.Thread):
    """One of ``start_daemon``."""
