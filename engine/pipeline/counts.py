"""What a pipeline counts: pictures from submission to pixels, and how long its stages run."""

from __future__ import annotations

import bisect
import threading
from collections import Counter
from dataclasses import dataclass
from typing import Any

from stepfuse.serving.stats import EngineStats, Histogram


@dataclass(frozen=True)
class PipelineStats(EngineStats):
    """Counts since a pipeline was made: an engine's, of all sizes together, and the time of the other stages.

    A request is one picture here, of a call too. It waits until it is encoded and the denoiser has it, and is finished
    when it is decoded.

    Attributes:
        text_encoder_seconds: In the text encoder.
        vae_encoder_seconds: In the VAE's encoder.
        vae_decoder_seconds: In the VAE's decoder.
    """

    text_encoder_seconds: float
    vae_encoder_seconds: float
    vae_decoder_seconds: float


class Counts:
    """Of requests, by the names of ``EngineStats``. Calls from any number of threads are safe.

    Args:
        bounds: Of the histograms of seconds.
    """

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._lock = threading.Lock()
        self._bounds = bounds
        self._counted: Counter[str] = Counter()
        self._values = {name: [0] * (len(bounds) + 1) for name in ("wait_seconds", "latency_seconds")}
        self._sums = dict.fromkeys(self._values, 0.0)

    def add(self, name: str, count: int = 1) -> None:
        """Counts so many requests."""
        with self._lock:
            self._counted[name] += count

    def observe(self, name: str, seconds: float, count: int = 1) -> None:
        """Notes how long so many requests took."""
        with self._lock:
            self._values[name][bisect.bisect_left(self._bounds, seconds)] += count
            self._sums[name] += seconds * count

    def stats(self) -> dict[str, Any]:
        """The counts."""
        names = "submitted", "samples", "failures", "cancelled", "expired", "deadline_misses", "queue_refusals"
        with self._lock:
            found: dict[str, Any] = {name: self._counted[name] for name in (*names, "deadline_refusals")}
            for name, values in self._values.items():
                found[name] = Histogram(self._bounds, tuple(values), self._sums[name])
        return found
