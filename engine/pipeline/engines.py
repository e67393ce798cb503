"""Engines of one network, one for each size of the samples."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from stepfuse.engine import Engine
from stepfuse.errors import EngineClosed

Shape = tuple[int, ...]


@dataclass
class _Held:
    engine: Engine
    users: dict[object, int] = field(default_factory=dict)  # the thread of each call that uses it


class Engines:
    """Keeps the engines used last, and closes the least recently used ones among those that are idle.

    Args:
        make: Makes an engine for samples of a shape.
        limit: How many are kept; more while all of them are in use.
    """

    def __init__(self, make: Callable[[Shape], Engine], limit: int = 4) -> None:
        self._make: Callable[[Shape], Engine] | None = make
        self._limit = limit
        self._held: OrderedDict[Shape, _Held] = OrderedDict()
        self._changed = threading.Condition()

    @contextmanager
    def use(self, shape: Shape) -> Iterator[Engine]:
        """The engine for samples of this shape, kept open within the context.

        Raises:
            EngineClosed: If the engines are closed.
            BundleError: If the network cannot sample this shape.
        """
        call = object()
        try:
            with self._changed:
                if self._make is None:
                    raise EngineClosed("the pipeline is closed")
                if shape not in self._held:
                    self._held[shape] = _Held(self._make(shape))
                held = self._held[shape]
                held.users[call] = threading.get_ident()
                self._held.move_to_end(shape)
            yield held.engine
        finally:
            with self._changed:
                for one in self._held.values():
                    one.users.pop(call, None)
                idle = [key for key, one in self._held.items() if not one.users and key != shape]
                surplus = [self._held.pop(key) for key in idle[: max(len(self._held) - self._limit, 0)]]
                self._changed.notify_all()
            for one in surplus:
                one.engine.close()

    def all(self) -> dict[Shape, Engine]:
        """The engines that are kept, by shape."""
        with self._changed:
            return {shape: held.engine for shape, held in self._held.items()}

    def close(self) -> None:
        """Closes each engine when its requests are done, and waits until none is in use; closing twice is fine.

        Calls of this thread are not waited for: they have been ended by Ctrl-C, which may come before they say so.

        Raises:
            RuntimeError: If called from a callback of one of the engines, which then stay open.
        """
        with self._changed:
            make, self._make = self._make, None
        try:
            for engine in self.all().values():
                engine.close()
        except RuntimeError:
            self._make = make
            raise
        with self._changed:
            here = threading.get_ident()
            self._changed.wait_for(lambda: not any({*held.users.values()} - {here} for held in self._held.values()))
            self._held.clear()
