"""Where the weights of an ONNX file lie, byte by byte, so that they can be read and changed in place.

A file that is parsed and written again is rarely the same to the byte, and is in memory twice. Here only the fields
that lead to the weights are read, as Protocol Buffers' wire format has them: a varint of field number and wire type,
then the value. Field numbers are those of onnx.proto.
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stepfuse.errors import ExportError

Float = npt.NDArray[Any]  # float32 or float16

TRANSPOSED = "stepfuse.transposed"  # key of a model's metadata
SMALL = 1024  # bytes; what is less stays in the graph, where shapes are inferred from it

_DTYPES: dict[int, np.dtype[Any]] = {1: np.dtype("<f4"), 10: np.dtype("<f2")}  # TensorProto.DataType
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types
_MODEL_GRAPH, _MODEL_METADATA, _GRAPH_INITIALIZER = 7, 14, 5
_DIMS, _DATA_TYPE, _FLOAT_DATA, _NAME, _RAW_DATA, _EXTERNAL_DATA = 1, 2, 4, 8, 9, 13


@dataclass(frozen=True)
class Weight:
    """A float32 or float16 initializer.

    Attributes:
        name: Its name in the graph.
        file: The file that holds its values.
        offset: Where they begin there, in bytes.
        dtype: ``<f4`` or ``<f2``.
        shape: Its shape.
    """

    name: str
    file: Path
    offset: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of its values."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> Float:
        """Its values."""
        with self.file.open("rb") as stream:
            stream.seek(self.offset)
            return np.frombuffer(stream.read(self.nbytes), self.dtype).reshape(self.shape)

    def write(self, values: Float) -> None:
        """Replaces its values; all other bytes stay."""
        if values.shape != self.shape or values.dtype != self.dtype:
            raise ValueError(f"{self.name} must be {self.dtype} {self.shape}, got {values.dtype} {values.shape}")
        with self.file.open("r+b") as stream:
            stream.seek(self.offset)
            stream.write(values.tobytes())


def read_weights(model: Path) -> tuple[dict[str, Weight], dict[str, str]]:
    """The weights of an ONNX file by name, and the model's metadata.

    Args:
        model: The file; weights outside it must lie beside it.

    Raises:
        ExportError: If it is no ONNX file, or its weights are not beside it.
    """
    weights: dict[str, Weight] = {}
    metadata: dict[str, str] = {}
    with model.open("rb") as stream:
        try:
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
                for number, start, end in _fields(data, 0, len(data)):
                    if number == _MODEL_GRAPH:
                        for inner, at, stop in _fields(data, start, end):
                            if inner == _GRAPH_INITIALIZER and (found := _weight(data, at, stop, model)):
                                weights[found.name] = found
                    elif number == _MODEL_METADATA:
                        metadata.update([_entry(data, start, end)])
        except (IndexError, UnicodeDecodeError, ValueError, KeyError) as error:
            if isinstance(error, ExportError):
                raise
            raise ExportError(f"{model} must be an ONNX file: {error}") from error
    return weights, metadata


@dataclass(frozen=True)
class Outline:
    """An ONNX file without the values of its initializers.

    Attributes:
        model: Bytes of the model without its graph.
        graph: Bytes of the graph without its initializers.
        initializers: Bytes of each initializer without its values, and where these lie in the file, as offset and
            length; None where its bytes are whole: values are less than 1 KB, a list of numbers or in another file.
    """

    model: bytes
    graph: bytes
    initializers: list[tuple[bytes, tuple[int, int] | None]]


def read_outline(model: Path) -> Outline:
    """Reads an ONNX file without the values of its initializers.

    Args:
        model: The file, as ``export_onnx`` writes it.
    """
    with model.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        rest, [(start, end)] = _without(data, 0, len(data), _MODEL_GRAPH)
        graph, tensors = _without(data, start, end, _GRAPH_INITIALIZER)
        initializers: list[tuple[bytes, tuple[int, int] | None]] = []
        for at, stop in tensors:
            header, values = _without(data, at, stop, _RAW_DATA)
            if values and (length := values[0][1] - values[0][0]) >= SMALL:
                initializers.append((header, (values[0][0], length)))
            else:
                initializers.append((data[at:stop], None))
    return Outline(rest, graph, initializers)


def transposed_weights(metadata: Mapping[str, str]) -> frozenset[str]:
    """Names of the parameters that a graph of ``stepfuse.export`` holds transposed, from its metadata.

    Raises:
        ExportError: If the metadata has no entry of them, as that of other exporters, or one that is no list of names.
    """
    if TRANSPOSED not in metadata:
        raise ExportError(f"a graph must say which weights it holds transposed ({TRANSPOSED}): export it with stepfuse")
    try:
        return frozenset(json.loads(metadata[TRANSPOSED]))
    except (ValueError, TypeError, RecursionError) as error:
        raise ExportError(f"{TRANSPOSED} of a graph must be a list of names: {error}") from error


def _fields(data: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Field number, first byte and end of the value of each field of a message."""
    at = start
    while at < end:
        key, at = _varint(data, at)
        kind = key & 7
        if kind == _BYTES:
            length, at = _varint(data, at)
        elif kind == _VARINT:
            length = _varint(data, at)[1] - at
        elif kind in (_FIXED64, _FIXED32):
            length = 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {kind} at byte {at}")
        if at + length > end:
            raise ValueError(f"a field of {length} bytes at byte {at} goes past {end}")
        yield key >> 3, at, at + length
        at += length


def _without(data: mmap.mmap, start: int, end: int, left_out: int) -> tuple[bytes, list[tuple[int, int]]]:
    """A message's bytes without the fields of one number, and where the values of these begin and end."""
    kept, found, begin = [], [], start
    for number, at, stop in _fields(data, start, end):
        if number == left_out:
            found.append((at, stop))
        else:
            kept.append(data[begin:stop])
        begin = stop
    return b"".join(kept), found


def _varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError(f"a number without end at byte {at}")


def _weight(data: mmap.mmap, start: int, end: int, model: Path) -> Weight | None:
    """A tensor, if it is float32 or float16 and its values are stored as they are in memory."""
    dims: list[int] = []
    outside: dict[str, str] = {}
    name, dtype, values = "", None, None
    for number, at, stop in _fields(data, start, end):
        if number == _DIMS:
            # A dimension each, or all of them packed: both are varints in a row.
            while at < stop:
                size, at = _varint(data, at)
                dims.append(size)
        elif number == _DATA_TYPE:
            dtype = _DTYPES.get(_varint(data, at)[0])
        elif number == _NAME:
            name = data[at:stop].decode()
        elif number in (_RAW_DATA, _FLOAT_DATA):
            values = (at, stop - at)
        elif number == _EXTERNAL_DATA:
            outside.update([_entry(data, at, stop)])
    file = model
    if outside:
        file = _beside(model, outside)
        values = int(outside.get("offset", "0")), int(outside.get("length", str(file.stat().st_size)))
    if dtype is None or values is None or values[1] != math.prod(dims) * dtype.itemsize:
        return None
    return Weight(name, file, values[0], dtype, tuple(dims))


def _entry(data: mmap.mmap, start: int, end: int) -> tuple[str, str]:
    found = {number: data[at:stop].decode() for number, at, stop in _fields(data, start, end)}
    return found.get(1, ""), found.get(2, "")


def _beside(model: Path, outside: Mapping[str, str]) -> Path:
    location = outside["location"]
    if Path(location).name != location or location in ("", ".", ".."):
        raise ExportError(f"{model}: weights must lie beside it, got {location!r}")
    return model.parent / location
