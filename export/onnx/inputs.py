"""A network's inputs: their names, shapes and random examples."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

_SIZE = re.compile(r"(?:([1-9]\d*)\*)?([A-Za-z_]\w*)")


@dataclass(frozen=True)
class Input:
    """One input of a network, a row at a time.

    Attributes:
        name: Its name in the graph.
        shape: Shape of one row: numbers, and names of sizes that a run may choose, such as ``"height"``, or
            ``"8*height"`` for a multiple of it.
        dtype: ``float32``, ``float16``, ``int64``, ``int32`` or ``bool``.
        low: Least value of an example.
        high: Values of an example are below this: the number of classes or of tokens. Without it, floats are standard
            normal, and integers 0 or 1.
        min_size: Smallest value of the sizes that it names, for a network whose levels would be left with a side of 1.
        max_size: Largest value of the sizes that it names, for a network that takes no larger one, such as one with a
            table of positions.
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: str = "float32"
    low: float = field(default=0, kw_only=True)
    high: float | None = field(default=None, kw_only=True)
    min_size: int | None = field(default=None, kw_only=True)
    max_size: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        for size in self.shape:
            if not (_SIZE.fullmatch(size) if isinstance(size, str) else size >= 1):
                raise ValueError(f"{self.name}: a size must be at least 1, a name or '8*name', got {size!r}")

    def row_shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape of one row where the named sizes have these values."""
        found = []
        for size in self.shape:
            multiple, name = (size, None) if isinstance(size, int) else split_size(size)
            if name is not None and name not in sizes:
                raise ValueError(f"sizes must give values for {size!r}, got {', '.join(sizes) or 'nothing'}")
            found.append(multiple if name is None else multiple * sizes[name])
        return tuple(found)

    def example(self, rows: int, sizes: Mapping[str, int], rng: np.random.Generator) -> npt.NDArray[Any]:
        """Random values of shape (rows, ...)."""
        shape = (rows, *self.row_shape(sizes))
        if not self.dtype.startswith("float"):
            return rng.integers(int(self.low), 2 if self.high is None else int(self.high), shape).astype(self.dtype)
        values = rng.standard_normal(shape) if self.high is None else rng.uniform(self.low, self.high, shape)
        return values.astype(self.dtype)


def split_size(size: str) -> tuple[int, str]:
    """``"8*height"`` as 8 and ``"height"``."""
    match = _SIZE.fullmatch(size)
    if match is None:
        raise ValueError(f"a size must be a name or '8*name', got {size!r}")
    return int(match[1] or 1), match[2]


def first_sizes(sizes: Mapping[str, Sequence[int]] | None) -> dict[str, int]:
    """The first value of each named size."""
    return {name: values[0] for name, values in (sizes or {}).items()}
