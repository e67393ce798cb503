"""What an engine has counted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any


class _Counted(Mapping[str, Any]):
    """A dataclass's attributes by name, as in ``stats["forwards"]``."""

    def __repr__(self) -> str:
        """The numbers that are not 0, on one line."""
        counts = [f"{name}={value:g}" for name, value in self.items() if isinstance(value, int | float) and value]
        return f"{type(self).__name__}({', '.join(counts)})"

    def __getitem__(self, name: str) -> Any:
        if name not in vars(self):
            raise KeyError(name)
        return vars(self)[name]

    def __iter__(self) -> Iterator[str]:
        return iter(vars(self))

    def __len__(self) -> int:
        return len(vars(self))


@dataclass(frozen=True, repr=False)
class Histogram(_Counted):
    """Values counted in buckets; also a mapping by the names of its attributes.

    Attributes:
        bounds: Upper bound of each bucket but the last, which has none.
        counts: Values in each bucket.
        sum: Of all values.
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    sum: float

    def __add__(self, other: Histogram) -> Histogram:
        """The values of both, which have the same bounds."""
        counts = tuple(one + more for one, more in zip(self.counts, other.counts, strict=True))
        return Histogram(self.bounds, counts, self.sum + other.sum)


@dataclass(frozen=True, repr=False)
class EngineStats(_Counted):
    """Counts since an engine was made; also a mapping by the names of its attributes.

    Every request taken is finished, failed, cancelled or expired in the end. The four kinds of seconds add up to the
    time in which the engine's thread was busy.

    Attributes:
        submitted: Requests taken into the queue, one an image.
        samples: Of these, finished.
        failures: Of these, ended because the network raised or a number was not finite.
        cancelled: Of these, withdrawn.
        expired: Of these, not finished within their timeout.
        deadline_misses: Finished after their deadline.
        queue_refusals: Requests not taken since the queue was full.
        deadline_refusals: Requests not taken since their deadline could not be met.
        waiting: Requests that wait for their first step, now.
        running: Requests that have begun and not ended, now.
        steps: Fused steps, one a request and step.
        forwards: Calls of the network.
        failed_forwards: Of these, the ones that raised.
        network_passes: Rows of these that a request asked for.
        padded_rows: Rows of these that were computed to fill a forward up.
        network_seconds: In the network.
        step_seconds: In the fused step and its noise.
        loop_seconds: In planning, staging and bookkeeping.
        callback_seconds: In callbacks of result handles, logs and traces.
        wait_seconds: From submission to the first step, of requests that began.
        latency_seconds: From submission to the image, of finished requests.
        forward_seconds: Of one call of the network.
        forward_rows: Rows of one call of the network, padding not counted.

    Examples:
        >>> with sf.Engine.load("fashion") as engine:
        ...     images = engine.sample(2, steps=3, guidance_scale=3.0, cond="bag")
        ...     stats = engine.stats()
        >>> stats.samples, stats.steps, stats.forwards, stats["failures"]
        (2, 6, 3, 0)
    """

    submitted: int
    samples: int
    failures: int
    cancelled: int
    expired: int
    deadline_misses: int
    queue_refusals: int
    deadline_refusals: int
    waiting: int
    running: int
    steps: int
    forwards: int
    failed_forwards: int
    network_passes: int
    padded_rows: int
    network_seconds: float
    step_seconds: float
    loop_seconds: float
    callback_seconds: float
    wait_seconds: Histogram
    latency_seconds: Histogram
    forward_seconds: Histogram
    forward_rows: Histogram

    def __add__(self, other: EngineStats) -> EngineStats:
        """The counts of two engines together."""
        return EngineStats(**{name: value + other[name] for name, value in self.items()})

    @classmethod
    def of(cls, status: Mapping[str, Any]) -> EngineStats:
        """From what the compiled loop counts."""
        values: dict[str, Any] = {
            name: Histogram(tuple(value["bounds"]), tuple(value["counts"]), value["sum"])
            if isinstance(value, dict)
            else value
            for name, value in status.items()
        }
        return cls(**values)
