"""The interpreter's exit: draws what was submitted to engines that are still open, and ends by Ctrl-C if that comes.

Handlers of ``atexit`` run when all threads but daemons have ended, while daemons still run. So what these wait for goes
on until then, and from then on their requests are refused: the work that is left is bounded.
"""

from __future__ import annotations

import atexit
import weakref
from typing import Protocol

from stepfuse import _core

#: Seconds for the forwards in progress to return once Ctrl-C has come.
GRACE = 1.0


class Closable(Protocol):
    """What is open until it is closed."""

    def refuse(self) -> None:
        """Takes no more requests."""

    def close(self, *, abort: bool = False, timeout: float | None = None) -> None:
        """Draws what was submitted, or gives it up; then frees what it holds."""


_open: weakref.WeakSet[Closable] = weakref.WeakSet()


def close_at_exit(one: Closable) -> None:
    """Has it closed when the interpreter exits, if it is still there."""
    if not _open:  # registered last: what was there before the first engine outlives it
        atexit.unregister(_close_all)
        atexit.register(_close_all)
    _open.add(one)


def _close_all() -> None:
    left = list(_open)
    try:
        for one in left:
            one.refuse()
        for one in left:
            one.close()
    except BaseException as error:  # Ctrl-C, or another signal whose handler raises
        if isinstance(error, KeyboardInterrupt):
            _core.end_by_interrupt()
        for one in left:
            one.close(abort=True, timeout=GRACE)
        raise
