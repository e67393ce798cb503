"""Device memory of the driver's, and copies to it that the host does not wait for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from stepfuse._core import cuda

Array = npt.NDArray[Any]

_LINE = 256  # bytes: what is copied begins where the driver's own memory would


class Rows:
    """Device memory of a number of rows.

    Attributes:
        name: For messages.
        shape: Of one row.
        dtype: Of its elements.
        address: Of the first row.
    """

    def __init__(self, context: cuda.Context, name: str, rows: int, shape: tuple[int, ...], dtype: str) -> None:
        self.name, self.shape, self.dtype = name, shape, np.dtype(dtype)
        self.buffer = cuda.DeviceBuffer(context, rows * math.prod(shape) * self.dtype.itemsize)
        self.address = self.buffer.address


class Staging:
    """Pinned memory of the host that copies to the device are made from.

    It is not written to while a copy of it is under way: that, and nothing else, is waited for.
    """

    def __init__(self, context: cuda.Context, stream: cuda.Stream) -> None:
        self._context, self._stream = context, stream
        self._copied = cuda.Event(context)
        self._under_way = False
        self._host: Array = np.empty(0, np.uint8)

    def put(self, copies: Sequence[tuple[Rows, Array]]) -> None:
        """Copies values to the first rows of each memory, in its dtype.

        Raises:
            ValueError: If a number is too large for a dtype. Nothing is copied then.
        """
        if self._under_way:
            self._copied.synchronize()
            self._under_way = False
        sizes = [values.size * rows.dtype.itemsize for rows, values in copies]
        starts = np.cumsum([0, *(-(-size // _LINE) * _LINE for size in sizes)])
        if starts[-1] > len(self._host):
            self._host = np.asarray(memoryview(cuda.HostBuffer(self._context, int(starts[-1]))))
        parts = [self._host[start : start + size] for start, size in zip(starts, sizes, strict=False)]
        for (rows, values), part in zip(copies, parts, strict=True):
            _convert(rows, values, part)
        self._under_way = True
        try:
            for (rows, _), part in zip(copies, parts, strict=True):
                rows.buffer.upload(self._stream, part)
        finally:
            self._stream.record(self._copied)


class Words:
    """Device memory for any number of words, those of one call at a time."""

    def __init__(self, context: cuda.Context, stream: cuda.Stream) -> None:
        self._context, self._stream = context, stream
        self._staging = Staging(context, stream)
        self._rows: Rows | None = None

    def put(self, words: Array) -> int:
        """Copies words to the memory and returns its address."""
        if self._rows is None or words.size > self._rows.buffer.bytes // words.itemsize:
            self._stream.synchronize()  # whatever reads the memory so far
            self._rows = Rows(self._context, "words", words.size, (), str(words.dtype))
        self._staging.put([(self._rows, words)])
        return self._rows.address


def _convert(rows: Rows, values: Array, to: Array) -> None:
    try:
        with np.errstate(over="raise"):
            np.copyto(to.view(rows.dtype), values.reshape(-1), casting="same_kind")
    except FloatingPointError:
        largest = np.abs(values[np.isfinite(values)]).max()
        raise ValueError(f"{rows.name} must fit the network's {rows.dtype}, got {largest}") from None
