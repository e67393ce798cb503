"""A network and its loop: runs requests to their end, one run at a time."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Protocol

import numpy as np
import numpy.typing as npt

from stepfuse import _core
from stepfuse.backends.buffers import Buffers
from stepfuse.bundle import ModelInfo
from stepfuse.cond import CondInput
from stepfuse.errors import DenoiserError
from stepfuse.progress import ProgressBar, turns_needed
from stepfuse.request import SampleRequest
from stepfuse.steptable import COLUMNS

Images = npt.NDArray[np.float32]

#: ``callback(step, total, x0_preview)``: False stops the run, None or anything else goes on.
Callback = Callable[[int, int, Images], bool | None]


class Denoiser(Protocol):
    """What a back end is: a network on the loop's memory."""

    def forward(self, rows: int) -> None:
        """Turns the first ``rows`` rows of the inputs into predictions."""

    def close(self) -> None:
        """Frees the network."""


class Runner:
    """Calls from several threads are safe; they run one after the other. One from inside a run is refused.

    Args:
        info: What the network is.
        make_denoiser: Makes the back end on the loop's memory.
        max_rows: Most rows of one forward.

    Raises:
        ValueError: If ``max_rows`` is below 1.
    """

    def __init__(self, info: ModelInfo, make_denoiser: Callable[[Buffers], Denoiser], max_rows: int) -> None:
        if max_rows < 1:
            raise ValueError(f"max_rows must be at least 1, got {max_rows}")
        self.max_rows = max_rows
        cond_bytes = [_row_bytes(spec) for spec in info.cond.values()]
        self._loop = _core.Loop(math.prod(info.shape), info.timestep_dtype == "int64", cond_bytes, max_rows)
        self._denoiser: Denoiser | None = make_denoiser(Buffers.of(self._loop, info))
        self._nulls = [spec.value(name, None) for name, spec in info.cond.items()]
        self._lock = threading.RLock()  # so that a call from inside a run is refused instead of waiting for itself
        self._running = False

    @property
    def closed(self) -> bool:
        """Whether the network is gone."""
        return self._denoiser is None

    def run(
        self,
        requests: Sequence[SampleRequest],
        x: Images,
        has_noise: Sequence[bool],
        *,
        progress: bool = False,
        callback: Callback | None = None,
    ) -> Images:
        """Draws all requests.

        Args:
            requests: One a sample.
            x: Shape (n, *shape); the run works in it. Starting noise where ``has_noise`` says so.
            has_noise: One a sample; where False, the noise is drawn from the request's seed.
            progress: Whether a bar is shown.
            callback: As in ``Engine.sample``.

        Returns:
            ``x``, or the clean samples implied so far if the callback stopped the run.

        Raises:
            DenoiserError: If a sample went non-finite; what the network raises comes through as it is.
            RuntimeError: If the network is gone, or the call comes from inside a run.
        """
        turns = turns_needed(requests, self.max_rows) if progress or callback is not None else 0
        preview = None if callback is None else np.zeros_like(x)
        with self._lock, ProgressBar(turns) if progress else nullcontext() as bar:
            denoiser = self._open()
            watch = _Watch(turns, bar, callback, preview)
            self._running = True
            try:
                self._submit(requests, x, has_noise, preview)
                failures = self._loop.run(denoiser.forward, watch if bar or callback else None)
            finally:
                self._loop.abort()
                self._running = False
        if failures:
            raise _non_finite(requests, *failures[0])
        return preview if watch.stopped and preview is not None else x

    def warmup(self, rows: Sequence[int]) -> None:
        """Runs a forward of each of these row counts.

        Raises:
            ValueError: If a count is below 1 or above ``max_rows``.
            RuntimeError: If the network is gone, or the call comes from inside a run.
        """
        with self._lock:
            denoiser = self._open()
            for count in rows:
                if not 1 <= count <= self.max_rows:
                    raise ValueError(f"rows must be between 1 and {self.max_rows}, got {count}")
            self._running = True
            try:
                for count in rows:
                    denoiser.forward(count)
            finally:
                self._running = False

    def counters(self) -> dict[str, float]:
        """The loop's counters, as of the last finished turn."""
        return self._loop.counters()

    def wait_until_idle(self) -> None:
        """Waits for a run in progress.

        Raises:
            RuntimeError: If the call comes from inside it.
        """
        with self._lock:
            self._require_idle()

    def close(self) -> None:
        """Frees the network. Waits for a run in progress; closing twice is fine."""
        with self._lock:
            self._require_idle()
            if self._denoiser is not None:
                self._denoiser.close()
            self._denoiser = None

    def _open(self) -> Denoiser:
        if self._denoiser is None:
            raise RuntimeError("the engine is closed")
        self._require_idle()
        return self._denoiser

    def _require_idle(self) -> None:
        if self._running:
            raise RuntimeError("the engine is running: it cannot be used or closed from its own denoiser or callback")

    def _submit(
        self, requests: Sequence[SampleRequest], x: Images, has_noise: Sequence[bool], preview: Images | None
    ) -> None:
        distinct = {id(request.table): request.table for request in requests}
        tables = {key: _core.Table(table.rows, table.init_scale) for key, table in distinct.items()}
        for i, request in enumerate(requests):
            seen = None if preview is None else preview[i]
            table, cond = tables[id(request.table)], request.cond or []
            self._loop.submit(i, table, request.seed, has_noise[i], x[i], seen, cond, self._nulls)


class _Watch:
    """What is done after each turn; False ends the run."""

    def __init__(self, turns: int, bar: ProgressBar | None, callback: Callback | None, preview: Images | None) -> None:
        self.stopped = False
        self._turn, self._turns = 0, turns
        self._bar, self._callback, self._preview = bar, callback, preview

    def __call__(self) -> bool:
        self._turn += 1
        if self._bar is not None:
            self._bar.update(self._turn)
        if self._callback is not None and self._preview is not None:
            try:
                answer = self._callback(self._turn, self._turns, self._preview.copy())
                self.stopped = answer is not None and not answer
            except StopIteration:
                self.stopped = True
        return not self.stopped


def _row_bytes(spec: CondInput) -> int:
    return math.prod(spec.shape) * np.dtype(spec.dtype).itemsize


def _non_finite(
    requests: Sequence[SampleRequest], index: int, step: int, row: npt.NDArray[np.float32]
) -> DenoiserError:
    table = requests[index].table
    values = ", ".join(f"{name} = {value:g}" for name, value in zip(COLUMNS, row, strict=True))
    return DenoiserError(
        f"sample {index} went non-finite at step {step} of {len(table)} ({table.sampler}): the network's output must be"
        f" finite. The step was {values}"
    )
