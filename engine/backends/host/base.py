"""What the host's back ends share: the stepper of the host's memory, and that memory as arrays, a row a sample."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from stepfuse import _core
from stepfuse.backends.base import row_bytes
from stepfuse.bundle.model_info import ModelInfo

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Buffers:
    """Views, not copies: a back end reads its inputs here and writes its prediction here.

    Attributes:
        sample: (max_rows, *shape) float32.
        timestep: (max_rows,) float32 or int64.
        cond: (max_rows, *input shape) by input name.
        prediction: (max_rows, *shape) float32.
    """

    sample: Array
    timestep: Array
    cond: dict[str, Array]
    prediction: Array

    @classmethod
    def of(cls, stepper: _core.HostStepper, info: ModelInfo) -> Buffers:
        """The memory of ``stepper`` in the shapes of ``info``."""
        views = stepper.buffers()
        sample = views["sample"]
        rows = len(sample)
        cond = {
            name: memory.view(spec.dtype).reshape(rows, *spec.shape)
            for (name, spec), memory in zip(info.cond.items(), views["cond"], strict=True)
        }
        return cls(
            sample=sample.reshape(rows, *info.shape),
            timestep=views["timestep"].reshape(rows),
            cond=cond,
            prediction=views["prediction"].reshape(rows, *info.shape),
        )


class HostBackend:
    """The memory of a network on the host; a back end adds ``forward`` and ``close``.

    Args:
        info: What the network is.
        max_rows: Most rows of one forward.

    Raises:
        ValueError: If so many samples of this shape do not fit the address space.
    """

    def __init__(self, info: ModelInfo, max_rows: int) -> None:
        self.stepper = _core.HostStepper(
            math.prod(info.shape),
            info.timestep_dtype == "int64",
            [row_bytes(spec) for spec in info.cond.values()],
            max_rows,
        )
        self.buffers = Buffers.of(self.stepper, info)

    @property
    def enqueue(self) -> Callable[[int], None]:
        """A forward on the host has nothing to overlap with: the loop calls it as it is."""
        return self.forward

    def forward(self, rows: int) -> None:
        """Turns the first ``rows`` rows of the inputs into predictions."""
        raise NotImplementedError

    def close(self) -> None:
        """Frees the network."""
