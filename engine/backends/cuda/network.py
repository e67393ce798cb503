"""A network on a GPU as the loop and trajectories see it: its rows and its captured forwards."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

from stepfuse._core import cuda

#: What states come back as: a tensor on the GPU of a torch module, else an array.
Samples = TypeVar("Samples", covariant=True)


class CapturedNetwork(Protocol[Samples]):
    """A network on a GPU. It owns the rows of a forward; states belong to the stepper or to the static batch.

    Attributes:
        context: Of the GPU.
        stream: What all work is ordered on.
        graphs: Its captured forwards by their rows; empty where it runs eagerly.
        max_rows: Rows of its memory.
        storage: What it takes samples and gives predictions in: ``float32``, ``float16`` or ``bfloat16``.
        addresses: Device memory of ``sample``, ``timestep``, ``prediction`` and each conditioning input by name,
            ``max_rows`` rows each.
        cond_storage: Dtype of each conditioning input in that memory.
    """

    context: cuda.Context
    stream: cuda.Stream
    graphs: dict[int, cuda.Graph]
    max_rows: int
    storage: str
    addresses: dict[str, int]
    cond_storage: dict[str, str]

    def ordered(self) -> AbstractContextManager[Any]:
        """Orders what is enqueued inside after the work of the caller's stream, and before its next work."""

    def forward(self, rows: int) -> None:
        """Enqueues a forward of the first ``rows`` rows, kernel by kernel."""

    def capture(
        self,
        buckets: Sequence[int],
        memory_bytes: int | None = None,
        *,
        optional: bool = False,
        reserved_bytes: int = 0,
    ) -> None:
        """Captures a forward for each number of rows, the largest first."""

    def copy_of(self, states: cuda.DeviceBuffer, count: int) -> Samples:
        """A copy of the first ``count`` float32 states, (count, *shape).

        A tensor on the GPU, which the caller's stream may use after ``ordered``, or an array, which is waited for.
        """
