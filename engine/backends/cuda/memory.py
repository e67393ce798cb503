"""Device memory of the driver's, and copies to it that the host does not wait for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from stepfuse._core import cuda

Array = npt.NDArray[Any]

_LINE = 256  # bytes: each copy begins where an allocation of the driver would


@dataclass(frozen=True)
class Rows:
    """Device memory of a number of rows.

    Attributes:
        name: For messages.
        dtype: Of its elements; ``bfloat16`` too, which numpy has not.
        buffer: The memory.
    """

    name: str
    dtype: str
    buffer: cuda.DeviceBuffer

    @classmethod
    def allocate(cls, context: cuda.Context, name: str, rows: int, shape: tuple[int, ...], dtype: str) -> Rows:
        """New memory of ``rows`` rows of a shape."""
        return cls(name, dtype, cuda.DeviceBuffer(context, rows * math.prod(shape) * item_bytes(dtype)))

    @classmethod
    def at(cls, context: cuda.Context, address: int, name: str, rows: int, shape: tuple[int, ...], dtype: str) -> Rows:
        """Memory of another owner, who keeps it."""
        size = rows * math.prod(shape) * item_bytes(dtype)
        return cls(name, dtype, cuda.DeviceBuffer.borrow(context, address, size))


class Staging:
    """Pinned memory of the host that copies to the device are made from.

    It is not overwritten before the copies from it are done: that, and nothing else, is waited for.
    """

    def __init__(self, context: cuda.Context, stream: cuda.Stream) -> None:
        self._context, self._stream = context, stream
        self._copied = cuda.Event(context)
        self._enqueued = False
        self._host: Array = np.empty(0, np.uint8)

    def put(self, copies: Sequence[tuple[Rows, Array]]) -> None:
        """Copies values to the first rows of each memory, in its dtype.

        Raises:
            ValueError: If a number is too large for a dtype. Nothing is copied then.
        """
        if self._enqueued and not self._copied.passed():
            self._copied.synchronize()
        self._enqueued = False
        sizes = [values.size * item_bytes(rows.dtype) for rows, values in copies]
        starts = np.cumsum([0, *(-(-size // _LINE) * _LINE for size in sizes)])
        if starts[-1] > len(self._host):
            self._host = np.asarray(memoryview(cuda.HostBuffer(self._context, int(starts[-1]))))
        parts = [self._host[start : start + size] for start, size in zip(starts, sizes, strict=False)]
        for (rows, values), part in zip(copies, parts, strict=True):
            _convert(rows, values, part)
        self._enqueued = True
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
        if self._rows is None or words.nbytes > self._rows.buffer.bytes:
            self._stream.synchronize()  # kernels may still read the memory that is replaced
            self._rows = Rows.allocate(self._context, "words", words.size, (), str(words.dtype))
        self._staging.put([(self._rows, words)])
        return self._rows.buffer.address


def is_out_of_memory(error: BaseException, texts: Sequence[str] = ()) -> bool:
    """Whether an error says that the device has no memory left.

    Args:
        error: The error. One of the driver's has a code.
        texts: What a library writes in that case, in lower case: ONNX Runtime and TensorRT raise a text and no code.
    """
    if isinstance(error, cuda.CudaError):
        return error.out_of_memory
    message = str(error).lower()
    return any(text in message for text in texts)


def item_bytes(dtype: str) -> int:
    """Bytes of an element."""
    return 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize


def _convert(rows: Rows, values: Array, to: Array) -> None:
    try:
        if rows.dtype == "bfloat16":
            to.view(np.uint16)[:] = _bfloat16_bits(values.reshape(-1))
            return
        with np.errstate(over="raise"):
            np.copyto(to.view(rows.dtype), values.reshape(-1), casting="same_kind")
    except FloatingPointError:
        largest = np.abs(values[np.isfinite(values)]).max()
        raise ValueError(f"{rows.name} must fit the network's {rows.dtype}, got {largest}") from None


def _bfloat16_bits(values: Array) -> npt.NDArray[np.uint16]:
    """Rounded to nearest, ties to even; raises ``FloatingPointError`` where that overflows."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = ((bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    rounded[np.isnan(values)] = 0x7FC0
    if ((rounded & 0x7FFF == 0x7F80) & np.isfinite(values)).any():
        raise FloatingPointError
    return rounded
