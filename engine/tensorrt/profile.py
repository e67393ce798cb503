"""Optimisation profiles: the shapes that a plan takes, and those that it is tuned for."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from stepfuse.bundle.pipeline_info import control_input
from stepfuse.errors import PlanError

Shape = tuple[int, ...]
Three = tuple[Shape, Shape, Shape]
PIXELS = ("image",)  # inputs whose sides are a picture's
CELLS = ("sample", "latent")  # and those whose sides are a sample's, as are all others that are dynamic there


@dataclass(frozen=True)
class Profile:
    """Least, best and greatest sizes. The plan refuses other sizes, and its kernels are chosen for the best.

    Attributes:
        rows: Rows of a forward, as (min, opt, max); a guided sample takes two.
        sizes: Widths and heights of pictures in pixels, as three pairs; None: the bundle's own.
        shapes: Shapes by name, as (min, opt, max), of inputs that are dynamic beyond rows and sizes.
    """

    rows: tuple[int, int, int] = (1, 2, 8)
    sizes: tuple[tuple[int, int], tuple[int, int], tuple[int, int]] | None = None
    shapes: Mapping[str, Three] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", tuple(self.rows))
        _ascending("rows", tuple((rows,) for rows in self.rows))
        if self.sizes is not None:
            object.__setattr__(self, "sizes", tuple(tuple(size) for size in self.sizes))
            _ascending("sizes", self.sizes, dimensions=2)
        shapes = {name: tuple(tuple(shape) for shape in three) for name, three in self.shapes.items()}
        object.__setattr__(self, "shapes", shapes)
        for name, three in shapes.items():
            _ascending(f"shapes of {name!r}", three)

    @classmethod
    def of(cls, rows: str, sizes: str | None = None) -> Profile:
        """From texts such as ``1,2,8`` and ``512x512,768x512,1024x1024`` (width x height); one stands for all three.

        Raises:
            ValueError: If a text has another form, or its numbers do not ascend.
        """
        if not re.fullmatch(r"\d+(,\d+,\d+)?", rows):
            raise ValueError(f"rows must be one number such as 8 or three such as 1,2,8 (min,opt,max), got {rows!r}")
        if sizes is not None and not re.fullmatch(r"\d+x\d+(,\d+x\d+,\d+x\d+)?", sizes):
            raise ValueError(
                "sizes must be one WIDTHxHEIGHT such as 512x512 or three such as 512x512,768x512,1024x1024"
                f" (min,opt,max), got {sizes!r}"
            )
        counts = [int(one) for one in rows.split(",")]
        pairs = [tuple(map(int, one.split("x"))) for one in sizes.split(",")] if sizes else None
        return cls(
            rows=tuple(counts * (3 // len(counts))),  # type: ignore[arg-type]
            sizes=None if pairs is None else tuple(pairs * (3 // len(pairs))),  # type: ignore[arg-type]
        )

    def shapes_of(self, name: str, dims: Sequence[int], *, pixels_per_cell: int) -> Three:
        """The three shapes of an input.

        Args:
            name: The input.
            dims: Its shape in the network, -1 where that is dynamic; the first is the rows.
            pixels_per_cell: Pixels a side of one cell of a sample.

        Raises:
            PlanError: If a fixed dimension has another size, a side is no multiple of a cell, or a dynamic dimension
                has no value in the profile.
        """
        three = self.shapes.get(name) or tuple(
            self._shape(name, dims, rows, size, 1 if _is_picture(name) else pixels_per_cell)
            for rows, size in zip(self.rows, self.sizes or (None,) * 3, strict=True)
        )
        for shape in three:
            if len(shape) != len(dims) or any(fixed not in (-1, size) for fixed, size in zip(dims, shape, strict=True)):
                raise PlanError(
                    f"{name}: the network takes shape {_text(dims)}, got {_text(shape)} in the profile"
                    f" ({', '.join(map(_text, three))})"
                )
        return three  # type: ignore[return-value]

    @staticmethod
    def _shape(
        name: str, dims: Sequence[int], rows: int, size: tuple[int, int] | None, pixels_per_cell: int
    ) -> tuple[int, ...]:
        shape = (rows, *dims[1:]) if dims[:1] == (-1,) else tuple(dims)
        if size is not None and len(dims) == 4 and (name in (*PIXELS, *CELLS) or -1 in dims[2:]):
            if uneven := [side for side in size if side % pixels_per_cell]:
                raise PlanError(f"sizes must be multiples of {pixels_per_cell} pixels, got {uneven[0]}")
            width, height = (side // pixels_per_cell for side in size)
            shape = (*shape[:2], height, width)
        if -1 in shape:
            missing = "sizes" if len(dims) == 4 and size is None else f"shapes={{{name!r}: (min, opt, max)}}"
            raise PlanError(f"{name}: shape {_text(dims)} is dynamic beyond its rows: give {missing}")
        return shape


def _ascending(name: str, three: tuple[Shape, ...], *, dimensions: int | None = None) -> None:
    lengths = {len(shape) for shape in three}
    whole = all(isinstance(size, int) and not isinstance(size, bool) and size >= 1 for shape in three for size in shape)
    if len(three) != 3 or len(lengths) != 1 or (dimensions is not None and lengths != {dimensions}):
        raise ValueError(f"{name} must be three, min, opt and max, alike in length, got {_joined(three)}")
    if not whole:
        raise ValueError(f"{name} must be whole numbers from 1 on, got {_joined(three)}")
    low, best, high = three
    if any(not a <= b <= c for a, b, c in zip(low, best, high, strict=True)):
        raise ValueError(f"{name} must not fall from min to opt to max, got {_joined(three)}")


def _joined(three: tuple[Shape, ...]) -> str:
    """As ``Profile.of`` takes it: ``1,2,8`` or ``512x512,768x512,1024x1024``."""
    return ",".join("x".join(map(str, shape)) for shape in three)


def _is_picture(name: str) -> bool:
    return name in PIXELS or name.startswith(control_input(""))


def _text(shape: Sequence[int]) -> str:
    return "(" + ", ".join("?" if size == -1 else str(size) for size in shape) + ")"
