"""What the engines are doing now, for those who watch: which requests shared each forward, queues, throughput."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from stepfuse.server.lifecycle import Lifecycle
from stepfuse.server.models import ServedModel
from stepfuse.serving.in_flight import Progress

_TICK = 0.1  # seconds between events: a fast engine has hundreds of forwards in one
_MOST = 512  # iterations of an event; the oldest of a tick with more are left out


class Watch:
    """One reader's: what has happened since its last event.

    Args:
        models: All that are served.
    """

    def __init__(self, models: Sequence[ServedModel]) -> None:
        self._models = models
        self.iterations: deque[dict[str, Any]] = deque(maxlen=_MOST)
        self._before = {model.name: (time.monotonic(), model.stats()) for model in models}

    def event(self) -> dict[str, Any]:
        """The iterations since the last event, and each model's numbers."""
        iterations = [self.iterations.popleft() for _ in range(len(self.iterations))]
        return {"iterations": iterations, "models": {model.name: self._numbers(model) for model in self._models}}

    def _numbers(self, model: ServedModel) -> dict[str, Any]:
        began, before = self._before[model.name]
        now, stats = time.monotonic(), model.stats()
        finished, seconds = stats["samples"] - before["samples"], now - began
        if seconds >= 1:  # a rate of less says nothing
            self._before[model.name] = now, stats
        latency = stats["latency_seconds"]["sum"] - before["latency_seconds"]["sum"]
        passes, forwards = (stats[name] - before[name] for name in ("network_passes", "forwards"))
        return {
            "waiting": stats["waiting"],
            "running": stats["running"],
            "finished": stats["samples"],
            "images_per_second": finished / seconds if seconds else 0.0,
            "latency_seconds": latency / finished if finished else None,
            "rows": passes / forwards if forwards else None,
        }


class Live:
    """Of one app. Engines report while there is a reader, and nothing is paid otherwise.

    Args:
        models: What is served.
        lifecycle: When it drains, readers are let go.
        seconds: Readers are let go after this long, to ask again.
    """

    def __init__(self, models: Sequence[ServedModel], lifecycle: Lifecycle, seconds: float = math.inf) -> None:
        self._models, self._lifecycle, self._seconds = models, lifecycle, seconds
        self._watches: list[Watch] = []

    async def events(self) -> AsyncIterator[Mapping[str, Any]]:
        """An event each tick until the service drains, or the time is up."""
        watch, end = Watch(self._models), time.monotonic() + self._seconds
        self._watches.append(watch)
        self._observe()
        try:
            while not self._lifecycle.draining and time.monotonic() < end:
                yield watch.event()
                await asyncio.sleep(_TICK)
        finally:
            self._watches.remove(watch)
            self._observe()

    def _observe(self) -> None:
        for model in self._models:
            model.observe(self._noted(model.name) if self._watches else None)

    def _noted(self, name: str) -> Any:
        def observer(made: Sequence[Progress]) -> None:  # on the engine's thread: appending is all that it does
            steps = {one.sample.name: (one.step, len(one.sample.request.table)) for one in made}
            rows = [{"id": id, "step": step, "steps": steps} for id, (step, steps) in steps.items()]
            for watch in tuple(self._watches):
                watch.iterations.append({"model": name, "requests": rows})

        return observer
