"""Safetensors files of unknown origin: a JSON header that says where each tensor lies, then the tensors' bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from stepfuse.files.strict_json import parse_json

#: Bits of a number, by the format's names of types.
_BITS: Mapping[str, int] = {
    "F4": 4,
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}
_LENGTH = 8  # bytes of the header's length
_LONGEST_HEADER = 100_000_000  # bytes, as the format's own readers have it


class Tensor(NamedTuple):
    """A tensor of a file: its type by the format's name, its shape, and its bytes, little-endian."""

    dtype: str
    shape: tuple[int, ...]
    data: memoryview


def read_safetensors(content: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file by name, which share its bytes, and its metadata.

    Raises:
        ValueError: If it is no such file: its header is no object of tensors, or these do not cover the rest of the
            file one after the other.
    """
    length = int.from_bytes(content[:_LENGTH], "little")
    begin = _LENGTH + length
    if len(content) < _LENGTH or begin > len(content):
        raise ValueError(f"its header must lie in its {len(content)} bytes")
    if length > _LONGEST_HEADER:
        raise ValueError(f"its header must have at most {_LONGEST_HEADER:,} bytes, got {length:,}")
    header = parse_json(content[_LENGTH:begin])
    if not isinstance(header, dict):
        raise ValueError("its header must be an object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its metadata must be an object of texts")
    data = memoryview(content)[begin:]
    tensors, places = {}, []
    for name, entry in header.items():
        dtype, shape, start, stop = _entry(entry)
        if (stop - start) * 8 != math.prod(shape) * _BITS[dtype]:
            raise ValueError("a tensor must have the bytes of its shape and type")
        tensors[name] = Tensor(dtype, shape, data[start:stop])
        places.append((start, stop))
    end = 0
    for start, stop in sorted(places):
        if start != end:
            raise ValueError(f"a tensor must begin at byte {end}, where the one before it ends, got {start}")
        end = stop
    if end != len(data):
        raise ValueError(f"tensors must end with the file at byte {len(data)}, got {end}")
    return tensors, metadata


def _entry(entry: Any) -> tuple[str, tuple[int, ...], int, int]:
    """Type, shape, and first and last byte of a tensor, as the header has them."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError("a tensor must be an object of dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if dtype not in _BITS:
        raise ValueError(f"a tensor's dtype must be one of {', '.join(_BITS)}")
    if not _counts(shape) or not _counts(offsets) or len(offsets) != 2:
        raise ValueError("a tensor's shape and data_offsets must be lists of whole numbers")
    return dtype, tuple(shape), *offsets


def _counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(one) is int and one >= 0 for one in value)
