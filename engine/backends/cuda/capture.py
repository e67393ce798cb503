"""Captured forwards: a CUDA graph for each number of rows, the largest first, as many as memory suffices for."""

from __future__ import annotations

import gc
import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from stepfuse._core import cuda
from stepfuse.backends.cuda.config import Cuda
from stepfuse.backends.cuda.network import CapturedNetwork
from stepfuse.errors import CaptureError

#: Forwards before a capture: libraries choose algorithms, load kernels and allocate in the first ones.
WARM_UPS = 3

#: Device memory of a graph itself, about: the driver keeps some hundred bytes a kernel, and forwards have a thousand.
GRAPH_BYTES = 1 << 20

logger = logging.getLogger("stepfuse")


class CapturedForwards(ABC):
    """A network whose forwards are captured.

    Attributes:
        graphs: The captured forwards by their rows; empty where it runs eagerly.
        max_rows: Rows of its memory.
    """

    graphs: dict[int, cuda.Graph]
    max_rows: int

    def capture(
        self,
        buckets: Sequence[int],
        memory_bytes: int | None = None,
        *,
        optional: bool = False,
        reserved_bytes: int = 0,
    ) -> None:
        """Captures a forward for each number of rows, the largest first.

        Those that memory does not suffice for are given up, with a warning.

        Args:
            buckets: Row counts.
            memory_bytes: Most memory for all of them; None: what is free.
            optional: Whether a network that cannot be captured runs eagerly, with a warning, and is not refused.
            reserved_bytes: What is to stay free for other uses, such as the loop's states.

        Raises:
            CaptureError: If it cannot be captured, or memory does not suffice for the smallest.
            ValueError: If ``buckets`` is empty, or a row count is not between 1 and ``max_rows``.
        """
        wrong = [rows for rows in buckets if not 1 <= rows <= self.max_rows]
        if wrong or not buckets:
            raise ValueError(f"buckets must be row counts from 1 to {self.max_rows}, got {list(buckets)}")
        try:
            with self.ordered():
                self._capture(sorted(set(buckets), reverse=True), memory_bytes, reserved_bytes)
        except CaptureError as error:
            self._forget()
            if not optional:
                raise
            reason = str(error)  # a log that keeps the error would keep the network
            logger.warning("the network runs eagerly, a launch a kernel: %s", reason)

    def _capture(self, buckets: list[int], memory_bytes: int | None, reserved_bytes: int) -> None:
        needs = {rows: self._warm_up(rows) for rows in buckets}
        tried = [(rows, need, GRAPH_BYTES) for rows, need in needs.items() if need is not None]
        free = max(0, self._free_memory() - reserved_bytes)
        available = free if memory_bytes is None else min(free, memory_bytes)
        try:
            kept, total = cuda.plan_budget(tried, available)
        except ValueError as error:
            raise CaptureError(
                f"no forward can be captured: {error}; give it more memory, or a smaller network"
            ) from error
        logger.info("capturing forwards of %s rows: about %.1f MiB of %.1f MiB free", kept, total / 2**20, free / 2**20)
        captured = cuda.capture_buckets(kept, self._captures)
        given_up = sorted(set(buckets) - set(captured), reverse=True)
        if given_up:
            logger.warning("forwards of %s rows are given up: memory suffices for %s", given_up, captured)
        if not captured:
            raise CaptureError("no forward can be captured: memory does not suffice for the smallest")

    @abstractmethod
    def ordered(self) -> AbstractContextManager[object]:
        """Orders what is enqueued inside after the work of the caller's stream, and before its next work."""

    @abstractmethod
    def _warm_up(self, rows: int) -> int | None:
        """Bytes that a forward works in, or None if there was no memory for it. The largest comes first."""

    @abstractmethod
    def _free_memory(self) -> int:
        """Bytes of device memory that captured forwards can have."""

    @abstractmethod
    def _captures(self, rows: int) -> bool:
        """Captures one forward; False if there was no memory for it.

        Raises:
            CaptureError: If it cannot be captured.
        """

    def _forget(self) -> None:
        """Drops the captured forwards."""
        self.graphs.clear()


def capture_as(device: Cuda, network: CapturedNetwork[Any], reserved_bytes: int = 0) -> None:
    """Captures a network's forwards as a device says.

    Raises:
        CaptureError: If they cannot be captured, and ``device.eager`` is False.
        ValueError: If a bucket is not between 1 and the network's ``max_rows``.
    """
    if device.eager is True:
        return
    buckets = device.buckets or cuda.bucket_rows(network.max_rows)
    network.capture(buckets, device.memory_bytes, optional=device.eager is None, reserved_bytes=reserved_bytes)


@contextmanager
def undisturbed() -> Iterator[None]:
    """For a capture: nothing is collected meanwhile, and what this thread lets go of is released afterwards.

    The driver makes a capture invalid in which its own thread frees memory, and Python may collect at any time.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        with cuda.HeldReleases():
            yield
    finally:
        if collects:
            gc.enable()


def unrepeatable(graph: cuda.Graph) -> str:
    """Names of what of a captured forward a replay cannot repeat, each with how many there are; empty: nothing."""
    found = Counter(graph.unrepeatable())
    return ", ".join(f"{part} ({count})" for part, count in sorted(found.items()))


def require_repeatable(rows: int, graph: cuda.Graph, rule: str) -> None:
    """Refuses a captured forward that holds what a replay cannot repeat; arguments are those of ``not_captured``.

    Raises:
        CaptureError: If it does.
    """
    if parts := unrepeatable(graph):
        raise not_captured(rows, f"it holds what a replay cannot repeat: {parts}", rule)


def not_captured(rows: int, reason: BaseException | str, rule: str) -> CaptureError:
    """The error of a capture that failed.

    Args:
        rows: Of the forward.
        reason: Why; of an error, the first line of its text.
        rule: What a captured network must be like, a sentence without its full stop.
    """
    text = (str(reason) or type(reason).__name__).splitlines()[0]
    return CaptureError(
        f"a forward of {rows} rows cannot be captured: {text}. {rule}: change that, or pass eager=None to run it"
        " kernel by kernel"
    )
