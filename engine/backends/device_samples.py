"""Samples that stay in a GPU's memory when they have left the loop."""

from __future__ import annotations

import math

import numpy as np

from stepfuse._core import cuda


class DeviceSamples:
    """Memory for samples of one shape, which is used again: to free it would wait for the device.

    Calls from any number of threads are safe.

    Args:
        context: Of the GPU.
        shape: Of a sample, (C, H, W).
    """

    def __init__(self, context: cuda.Context, shape: tuple[int, ...]) -> None:
        self._context, self._shape = context, shape
        self._bytes = math.prod(shape) * np.dtype(np.float32).itemsize
        self._idle: list[cuda.DeviceBuffer] | None = []  # None: closed

    def take(self) -> DeviceSample | None:
        """Memory for one sample until it is let go; None where the GPU has none left, or after ``close``."""
        idle = self._idle
        if idle is None:
            return None
        try:
            buffer = idle.pop()
        except IndexError:
            try:
                buffer = cuda.DeviceBuffer(self._context, self._bytes)
            except cuda.CudaError as error:
                if not error.out_of_memory:
                    raise
                return None
        return DeviceSample(self, buffer, (1, *self._shape))

    def give_back(self, buffer: cuda.DeviceBuffer) -> None:
        """Keeps memory for the next sample."""
        if (idle := self._idle) is not None:
            idle.append(buffer)

    def close(self) -> None:
        """Frees the memory, and what is in use as soon as that is let go."""
        self._idle = None


class DeviceSample:
    """A sample in a GPU's memory, float32, which goes back to ``DeviceSamples`` when nothing refers to this.

    Attributes:
        buffer: The memory.
        shape: (1, C, H, W), a forward's of one row.
    """

    def __init__(self, owner: DeviceSamples, buffer: cuda.DeviceBuffer, shape: tuple[int, ...]) -> None:
        self._owner = owner
        self.buffer, self.shape = buffer, shape

    def __del__(self) -> None:
        self._owner.give_back(self.buffer)
