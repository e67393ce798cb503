"""Where samples are drawn: whose memory the loop works in, and what computes a forward there."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from stepfuse import _core
from stepfuse.backends.buffers import Buffers
from stepfuse.bundle.cond_input import CondInput
from stepfuse.bundle.model_info import ModelInfo
from stepfuse.serving.config import Serving


class Denoiser(Protocol):
    """What a back end is: a network on the loop's memory."""

    def forward(self, rows: int) -> None:
        """Turns the first ``rows`` rows of the inputs into predictions."""

    def close(self) -> None:
        """Frees the network."""


@dataclass(frozen=True)
class Placed:
    """A loop and its network.

    Attributes:
        server: The loop.
        denoiser: The network, whose ``forward`` returns when the predictions are there.
        forward: What the loop calls instead: on a GPU it returns before.
    """

    server: _core.Server
    denoiser: Denoiser
    forward: Callable[[int], None] | _core.Denoiser


#: ``place(info, serving, check)``; ``check``: whether the loop's invariants are checked after each turn.
Place = Callable[[ModelInfo, Serving, bool], Placed]


def on_host(make_denoiser: Callable[[Buffers], Denoiser]) -> Place:
    """The host's memory, and a network that ``make_denoiser`` makes on it."""

    def place(info: ModelInfo, serving: Serving, check: bool) -> Placed:
        server = _core.Server(
            math.prod(info.shape),
            info.timestep_dtype == "int64",
            [row_bytes(spec) for spec in info.cond.values()],
            serving.max_rows,
            serving.loop_options(),
            serving.max_queue,
            check,
        )
        denoiser = make_denoiser(Buffers.of(server, info))
        return Placed(server, denoiser, denoiser.forward)

    return place


def row_bytes(spec: CondInput) -> int:
    """Bytes of one value of a conditioning input, as a request holds it."""
    return math.prod(spec.shape) * np.dtype(spec.dtype).itemsize
