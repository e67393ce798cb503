"""What the host's back ends share: the stepper of the host's memory, and that memory as arrays, a row a sample."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from stepfuse import _core
from stepfuse.arguments import whole_number
from stepfuse.backends.base import row_bytes
from stepfuse.bundle.model_info import ModelInfo
from stepfuse.errors import BundleError
from stepfuse.lora.adapters import Adapters

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


def checked_threads(threads: int) -> int:
    """``threads``, if a machine like this one can make use of so many; 0 leaves the choice to the library.

    Raises:
        TypeError: If it is not a whole number.
        ValueError: If it is negative, or more than four a processor and more than 64.
    """
    threads = whole_number("threads", threads)
    most = max(64, 4 * (os.cpu_count() or 1))
    if threads < 0:
        raise ValueError(f"threads must be at least 0, got {threads}")
    if threads > most:
        raise ValueError(f"threads must be at most {most} on this machine, got {threads}")
    return threads


@contextmanager
def fitting(model: Path, max_rows: int) -> Iterator[None]:
    """Has memory that does not suffice reported as a bound of ``max_rows``.

    Raises:
        BundleError: If what is done within raises a ``MemoryError``.
    """
    try:
        yield
    except MemoryError as error:
        raise BundleError(f"{model}: {max_rows} rows do not fit the memory: lower max_rows") from error


class HostBackend:
    """The memory of a network on the host; a back end adds ``forward`` and ``close``.

    Args:
        info: What the network is.
        max_rows: Most rows of one forward.

    Raises:
        ValueError: If so many samples of this shape do not fit the address space.
    """

    rowwise = False
    adapters: Adapters | None = None
    device_samples = None

    def __init__(self, info: ModelInfo, max_rows: int) -> None:
        self.stepper = _core.HostStepper(
            math.prod(info.shape),
            info.timestep_dtype == "int64",
            [row_bytes(spec) for spec in info.cond.values()],
            max_rows,
        )
        self.buffers = Buffers.of(self.stepper, info)

    @property
    def enqueue(self) -> Callable[..., None]:
        """A forward on the host has nothing to overlap with: the loop calls it as it is."""
        return self.forward

    def forward(self, rows: int) -> None:
        """Turns the first ``rows`` rows of the inputs into predictions."""
        raise NotImplementedError

    def interrupt(self) -> None:
        """Asks a forward in progress to fail soon; a Python function cannot be asked."""

    def close(self) -> None:
        """Frees the network."""
