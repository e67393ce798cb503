"""One sample between a caller's result handle and the loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from stepfuse import _core
from stepfuse.backends.device_samples import DeviceSample
from stepfuse.display import NAME, printable
from stepfuse.lora.adapters import AdapterSet
from stepfuse.requests.resolution import ResolvedRequest

Images = npt.NDArray[np.float32]


@dataclass(eq=False)
class InFlightSample:
    """A sample that a service has taken, or is about to.

    Attributes:
        id: Unique in its service.
        request: What is sampled.
        x: Shape (C, H, W): starting noise if ``has_noise``; the state, and in the end the sample.
        has_noise: Whether ``x`` holds the noise already.
        handle: The result handle that its progress goes to.
        x0: Shape (C, H, W), takes the clean sample implied so far; None if no preview is wanted.
        gate: Lets one iteration through at a time.
        watched: Whether each step is reported to ``handle``, not the end alone.
        context: Tracing context of the caller.
        index: Its place among the samples of one call; None if it is a request of its own.
        ended: Whether its handle has been called with its end.
        adapters: The LoRAs that it has chosen; their factors are kept with it.
        on_device: Takes the sample too, in the end, in a GPU's memory; None: it is in ``x`` alone.
    """

    id: int
    request: ResolvedRequest
    x: Images
    has_noise: bool
    handle: ResultHandle
    x0: Images | None = None
    gate: _core.Gate | None = None
    watched: bool = False
    context: Any = None
    index: int | None = None
    ended: bool = False
    adapters: AdapterSet | None = None
    on_device: DeviceSample | None = None

    @property
    def name(self) -> str:
        """What logs and traces call it."""
        return printable(self.request.name or self.id, NAME)

    def __str__(self) -> str:
        return f"request {self.name}" if self.index is None else f"sample {self.index}"


@dataclass(frozen=True)
class Progress:
    """What one iteration has made of a sample.

    Attributes:
        sample: The sample.
        step: Steps done.
        ended: Whether it has left the loop: it is in ``sample.x``, or ``error`` says why not.
        error: What it failed with.
    """

    sample: InFlightSample
    step: int
    ended: bool = False
    error: BaseException | None = None


class ResultHandle(Protocol):
    """What a caller waits on: a future, a stream, a batch.

    A handle keeps a sample's id, not the sample, which refers to its handle: a reference cycle would keep the image
    until the garbage collector runs.
    """

    def on_progress(self, made: Sequence[Progress]) -> None:
        """Takes what one iteration has made of its samples, in the order in which it happened.

        Called on the loop's thread, which waits for it; previews and states hold still until it returns.
        """
