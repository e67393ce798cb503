"""Engines of one network, one for each size of the samples."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from stepfuse.engine import Engine
from stepfuse.errors import EngineClosed
from stepfuse.serving.at_exit import closed_by_its_owner
from stepfuse.serving.reporting import Observer
from stepfuse.serving.stats import EngineStats

#: (C, h, w) of a sample; behind it the number of tokens, where that is another than the model's own.
Shape = tuple[int, ...]


@dataclass
class _Held:
    engine: Engine
    weights: object
    users: dict[object, int] = field(default_factory=dict)  # the thread of each call that uses it


class Engines:
    """Keeps the engines used last, and closes the least recently used ones among those that are idle.

    These are closed before another is made, so that their memory is free then. All are their owner's to close, at the
    interpreter's exit, too.

    Args:
        make: Makes an engine for samples of a shape.
        limit: How many are kept; more while all of them are in use.
        weights: Which weights an engine for samples of a shape has. Idle engines that have others are closed before it
            is made: where sizes do not share weights, those of one are held at a time. None: all have the same.
    """

    def __init__(
        self, make: Callable[[Shape], Engine], limit: int = 4, weights: Callable[[Shape], object] | None = None
    ) -> None:
        self._make: Callable[[Shape], Engine] | None = make
        self._weights_of = weights or _all_the_same
        self._weights: dict[Shape, object] = {}  # of the shapes that were asked for
        self.limit = limit
        self._held: OrderedDict[Shape, _Held] = OrderedDict()
        self._counted: EngineStats | None = None  # by those that are closed
        self._observer: Observer | None = None
        self._changed = threading.Condition()

    def observe(self, observer: Observer | None) -> None:
        """Has each iteration of all engines reported, those to come among them: ``Engine.observe``."""
        with self._changed:
            self._observer = observer
            for one in self._held.values():
                one.engine.observe(observer)

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
                    weights = self._weights_at(shape)
                    self._close_idle(self.limit - 1, weights)
                    self._held[shape] = _Held(self._make(shape), weights)
                    closed_by_its_owner(self._held[shape].engine._service)
                    self._held[shape].engine.observe(self._observer)
                held = self._held[shape]
                held.users[call] = threading.get_ident()
                self._held.move_to_end(shape)
            yield held.engine
        finally:
            with self._changed:
                for one in self._held.values():
                    one.users.pop(call, None)
                if shape in self._held:
                    self._close_idle(self.limit, self._held[shape].weights, but=shape)
                self._changed.notify_all()

    def fits(self, shape: Shape, beside: Collection[Shape]) -> bool:
        """Whether an engine for this shape may be held beside those for others; else it waits until they are idle.

        One that cannot be made may: ``use`` says why.
        """
        try:
            same = all(self._weights_at(other) == self._weights_at(shape) for other in beside)
        except Exception:
            return True
        return same and len(beside) < self.limit

    def _weights_at(self, shape: Shape) -> object:
        if shape not in self._weights:
            self._weights[shape] = self._weights_of(shape)
        return self._weights[shape]

    def _close_idle(self, most: int, weights: object, but: Shape | None = None) -> None:
        """Closes engines that no call uses: those of other weights, and until there are ``most``."""
        idle = [key for key, one in self._held.items() if not one.users and key != but]
        idle.sort(key=lambda key: self._held[key].weights == weights)
        others = sum(self._held[key].weights != weights for key in idle)
        for key in idle[: max(len(self._held) - most, others)]:
            engine = self._held.pop(key).engine
            self._counted = _sum(self._counted, engine.stats())
            engine.close()

    def all(self) -> dict[Shape, Engine]:
        """The engines that are kept, by shape."""
        with self._changed:
            return {shape: held.engine for shape, held in self._held.items()}

    def totals(self) -> EngineStats:
        """What all of them have counted, those that are closed by now too.

        Raises:
            EngineClosed: If there was none.
        """
        with self._changed:
            found = self._counted
            for held in self._held.values():
                found = _sum(found, held.engine.stats())
        if found is None:
            raise EngineClosed("the pipeline is closed")
        return found

    def refuse(self, *, abort: bool) -> None:
        """Has them take no more requests, and with ``abort`` give up those that they have; waits for nothing."""
        for engine in self.all().values():
            engine._service.refuse(abort=abort)

    def require_closable(self) -> None:
        """Refuses to be closed by what one of them waits for.

        Raises:
            RuntimeError: If called from a callback of one of the engines.
        """
        for engine in self.all().values():
            engine._service.require_closable()

    def close(self, *, abort: bool = False, timeout: float | None = None) -> None:
        """Closes each engine when its requests are done, and waits until none is in use; closing twice is fine.

        Calls of this thread are not waited for: they have been ended by Ctrl-C, which may come before they say so.

        Args:
            abort: As in ``Engine.close``.
            timeout: Seconds for all of them together; None: as long as it takes.

        Raises:
            RuntimeError: If called from a callback of one of the engines.
        """
        until = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            self._make, self._weights_of = None, _all_the_same
        for engine in self.all().values():
            engine.close(abort=abort, timeout=seconds_left(until))
        with self._changed:
            here = threading.get_ident()
            self._changed.wait_for(
                lambda: not any({*held.users.values()} - {here} for held in self._held.values()), seconds_left(until)
            )
            for held in self._held.values():
                self._counted = _sum(self._counted, held.engine.stats())
            self._held.clear()


def _all_the_same(shape: Shape) -> object:
    return None


def seconds_left(until: float | None) -> float | None:
    """From now to a time on ``time.monotonic()``, at least 0 and at most what can be waited; None is no limit."""
    return None if until is None else min(max(until - time.monotonic(), 0.0), threading.TIMEOUT_MAX)


def _sum(one: EngineStats | None, other: EngineStats) -> EngineStats:
    return other if one is None else one + other
