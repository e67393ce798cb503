"""Starting threads so that Ctrl-C harms neither them nor their start."""

from __future__ import annotations

import _thread
import queue
import threading
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
            thread = threading.Thread(target=run, name=name, daemon=True)
            thread.start()
            on_start(thread)
        except BaseException as error:
            started.put(error)
        else:
            started.put(None)

    _thread.start_new_thread(start, ())
    if (error := started.get()) is not None:
        raise error
