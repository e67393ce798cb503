"""Engines of one network, one for each size that is drawn."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from stepfuse.engine import Engine
from stepfuse.errors import EngineClosed

Shape = tuple[int, ...]


@dataclass
class _Held:
    engine: Engine
    users: int = 0


class Engines:
    """Keeps the last few, and closes those idle that have not been used for longest.

    Args:
        make: An engine for samples of a shape.
        limit: How many are kept; more are while they are all in use.
    """

    def __init__(self, make: Callable[[Shape], Engine], limit: int = 4) -> None:
        self._make, self._limit = make, limit
        self._held: OrderedDict[Shape, _Held] = OrderedDict()
        self._lock = threading.Lock()
        self._closed = False

    @contextmanager
    def use(self, shape: Shape) -> Iterator[Engine]:
        """The engine for samples of this shape, which stays open for as long as it is used.

        Raises:
            EngineClosed: If they were closed.
            BundleError: If the network cannot draw this shape.
        """
        with self._lock:
            if self._closed:
                raise EngineClosed("the pipeline is closed")
            if shape not in self._held:
                self._held[shape] = _Held(self._make(shape))
            held = self._held[shape]
            held.users += 1
            self._held.move_to_end(shape)
        try:
            yield held.engine
        finally:
            with self._lock:
                held.users -= 1
                idle = [key for key, one in self._held.items() if not one.users and key != shape]
                surplus = [self._held.pop(key) for key in idle[: max(len(self._held) - self._limit, 0)]]
            for one in surplus:
                one.engine.close()

    def all(self) -> dict[Shape, Engine]:
        """Those that are kept, by shape."""
        with self._lock:
            return {shape: held.engine for shape, held in self._held.items()}

    def close(self) -> None:
        """Lets each finish what it draws and closes it; closing twice is fine."""
        with self._lock:
            self._closed = True
        for engine in self.all().values():
            engine.close()
