"""Protocol Buffers' wire format, in which ONNX files are: fields of a message, one after the other.

A field is a varint of its number and wire type, then its value.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types
_LENGTHS = {FIXED64: 8, FIXED32: 4}

Bytes = mmap.mmap | bytes


def fields(data: Bytes, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Number, wire type, first byte and end of the value of each field of a message.

    Raises:
        ValueError: If the bytes are no message.
    """
    at = start
    while at < end:
        key, at = varint(data, at, end)
        wire = key & 7
        if wire == BYTES:
            length, at = varint(data, at, end)
        elif wire == VARINT:
            length = varint(data, at, end)[1] - at
        elif wire in _LENGTHS:
            length = _LENGTHS[wire]
        else:
            raise ValueError(f"wire type {wire} at byte {at}")
        if at + length > end:
            raise ValueError(f"a field of {length} bytes at byte {at} goes past {end}")
        yield (key & 0xFFFFFFFF) >> 3, wire, at, at + length  # protobuf's keys have 32 bits
        at += length


def varint(data: Bytes, at: int, end: int) -> tuple[int, int]:
    """A whole number, and where it ends.

    Raises:
        ValueError: If it does not end before ``end``, or has more than 64 bits.
    """
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise ValueError(f"a number without end at byte {at}")


def written_varint(value: int) -> bytes:
    """A whole number from 0 on, written."""
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def written_key(number: int, length: int) -> bytes:
    """What stands before a field's value of so many bytes."""
    return written_varint(number << 3 | BYTES) + written_varint(length)


def written(number: int, value: int | bytes | str) -> bytes:
    """A field, written: a whole number, or bytes, which a text or a message is."""
    if isinstance(value, int):
        return written_varint(number << 3 | VARINT) + written_varint(value)
    content = value.encode() if isinstance(value, str) else value
    return written_key(number, len(content)) + content
