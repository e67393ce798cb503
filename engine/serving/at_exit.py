"""The interpreter's exit: draws what was submitted to engines that are still open, or gives it up after Ctrl-C.

Handlers of ``atexit`` run when all threads but daemons have ended, while daemons still run. So what these wait for goes
on until then, and from then on their requests are refused: the work that is left is bounded. A daemon that the end of
the interpreter finds in a library's destructor would abort the process.
"""

from __future__ import annotations

import atexit
import sys
import time
import weakref
from collections.abc import Iterable
from typing import Protocol

from stepfuse import _core
from stepfuse.serving.threads import join_daemons

#: Seconds for the forwards in progress to return once Ctrl-C has come.
GRACE = 1.0


class Closable(Protocol):
    """What is open until it is closed."""

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C ended the last wait for it, and nothing was submitted since."""

    def refuse(self, *, abort: bool = False) -> None:
        """Takes no more requests, and with ``abort`` gives up those that it has; waits for nothing."""

    def close(self, *, abort: bool = False, timeout: float | None = None) -> None:
        """Draws what was submitted, or gives it up; then frees what it holds."""


_open: weakref.WeakSet[Closable] = weakref.WeakSet()


def close_at_exit(one: Closable) -> None:
    """Has it closed when the interpreter exits, if it is still there."""
    if not _open:  # registered last: what was there before the first engine outlives it
        atexit.unregister(_close_all)
        atexit.register(_close_all)
    _open.add(one)


def closed_by_its_owner(one: Closable) -> None:
    """Leaves it open when the interpreter exits: what it is a part of closes it."""
    _open.discard(one)


def is_interrupt(error: BaseException | None) -> bool:
    """Whether what an exception ends is to end at once: Ctrl-C, or the cancellation of a task.

    All but ``Exception``, the process's regular end and a generator's: event loops have cancellations of their own.
    """
    return error is not None and not isinstance(error, Exception | SystemExit | GeneratorExit)


def _close_all() -> None:
    left = list(_open)
    by_interrupt = _ended_by_interrupt()
    try:
        for one in left:
            one.refuse()
        _give_up([one for one in left if by_interrupt or one.interrupted])
        for one in left:
            one.close()
        if not by_interrupt:
            join_daemons(GRACE)  # those of what was let go of without being closed may be freeing its networks
    except BaseException as error:  # Ctrl-C, or another signal whose handler raises
        if isinstance(error, KeyboardInterrupt):
            _core.end_by_interrupt()
        _give_up(left)
        raise


def _give_up(left: Iterable[Closable]) -> None:
    """All at once, so that it takes ``GRACE`` seconds at most however many there are."""
    until = time.monotonic() + GRACE
    for one in left:
        one.refuse(abort=True)
    for one in left:
        one.close(abort=True, timeout=max(until - time.monotonic(), 0.0))


def _ended_by_interrupt() -> bool:
    """Whether the main thread has ended by Ctrl-C; at a prompt a traceback is no end."""
    if hasattr(sys, "ps1") or sys.flags.interactive:
        return False
    last = getattr(sys, "last_type", None)  # what the interpreter has printed a traceback of
    return isinstance(last, type) and issubclass(last, KeyboardInterrupt)
