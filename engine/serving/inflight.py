"""One sample between whoever wants it and the loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from stepfuse import _core
from stepfuse.requests.resolution import SampleRequest

Images = npt.NDArray[np.float32]


class Owner(Protocol):
    """Who wants a sample. All of it is called on the loop's thread, which waits: be quick.

    An owner keeps a sample's id, not its draw: the draw knows its owner, and a circle would keep the image until the
    garbage collector comes by.
    """

    def stepped(self, draw: Draw, step: int) -> None:
        """A watched sample has done ``step`` steps; its preview holds still until this returns."""

    def ended(self, draw: Draw, error: BaseException | None) -> None:
        """The sample is in ``draw.x``, or will never be."""

    def turn_over(self) -> None:
        """All that happened in a turn has been told."""


@dataclass(eq=False)
class Draw:
    """One sample on its way through the loop.

    Attributes:
        request: What to draw.
        x: Shape (C, H, W): starting noise if ``has_noise``; the state, and in the end the sample.
        has_noise: Whether ``x`` holds the noise already.
        owner: Is told what becomes of it.
        x0: Shape (C, H, W), takes the clean sample implied so far; None if nobody looks.
        gate: Lets one turn through at a time.
        watched: Whether ``owner.stepped`` is called.
        context: Tracing context of the caller.
        index: Its place among the samples of one call; None if it is a request of its own.
        id: Unique in its service.
    """

    request: SampleRequest
    x: Images
    has_noise: bool
    owner: Owner
    x0: Images | None = None
    gate: _core.Gate | None = None
    watched: bool = False
    context: Any = None
    index: int | None = None
    id: int = 0

    @property
    def name(self) -> str:
        """What logs and traces call it."""
        return self.request.name or str(self.id)

    def __str__(self) -> str:
        return f"request {self.name}" if self.index is None else f"sample {self.index}"
