"""``.npz`` archives of unknown origin: plain arrays of numbers or text, of a bounded size, or a ValueError."""

from __future__ import annotations

import io
import math
import re
import struct
import zipfile
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

_MAGIC = b"\x93NUMPY"
_HEADER = re.compile(
    r"\{'descr': '(?:([<>|=]?(?:b1|[iu][1248]|f[248]))|([<>])U(\d{1,10}))', 'fortran_order': (True|False),"
    r" 'shape': \(((?:\d{1,19},? ?)*)\), *\} *\n"
)
_MOST_DIMENSIONS = 32


def read_npz(data: bytes, most_bytes: int) -> dict[str, npt.NDArray[Any]]:
    """The arrays of an archive by name.

    Args:
        data: The archive.
        most_bytes: Bound of its arrays' bytes in all, which is held before any of them is unpacked.

    Raises:
        ValueError: If it is no archive of plain arrays, an array is not as long as it says, or they are larger.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            if (size := sum(one.file_size for one in members)) > most_bytes:
                raise ValueError(f"its arrays must be at most {most_bytes} bytes, got {size}")
            return {one.filename.removesuffix(".npy"): _array(one.filename, archive.read(one)) for one in members}
    # What zipfile raises of damaged archives: for features that it lacks, for encryption, for lengths.
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, struct.error, OverflowError) as error:
        raise ValueError(f"it is no archive of arrays: {error}") from error


def _array(name: str, data: bytes) -> npt.NDArray[Any]:
    """An array of NumPy's .npy format, version 1 to 3, without objects."""
    wide = data[6:7] > b"\x01"
    begin = 12 if wide else 10
    if not data.startswith(_MAGIC) or len(data) < begin:
        raise ValueError(f"{name} must be an array of numbers")
    end = begin + int.from_bytes(data[8:begin], "little")
    found = _HEADER.fullmatch(data[begin:end].decode("latin-1"))
    if found is None:
        raise ValueError(
            f"{name} must be a plain array of numbers or text, got {data[begin : min(end, begin + 200)]!r}"
        )
    number, order, characters, by_column, sizes = found.groups()
    shape = tuple(int(size) for size in sizes.replace(",", " ").split())
    each = np.dtype(number).itemsize if number else 4 * int(characters)
    if math.prod(shape) * each != len(data) - end or len(shape) > _MOST_DIMENSIONS:
        raise ValueError(f"{name} must have as many bytes as its shape says, {shape}, got {len(data) - end}")
    if number:
        return np.frombuffer(data, number, offset=end).reshape(shape, order="F" if by_column == "True" else "C")
    if shape:
        raise ValueError(f"{name} must be one text, got {shape}")
    return np.array(data[end:].decode("utf-32-le" if order == "<" else "utf-32-be").rstrip("\0"))
