"""A convolutional network over a large image: in tiles that overlap and are blended."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.float32]

OVERLAP = 4  # a tile shares a quarter of its side with the next, as in diffusers


def tiled(run: Callable[[Image], Image], x: Image, tile: int, result_tile: int) -> Image:
    """Runs a network on tiles of ``x`` and joins what it gives, blended linearly where tiles overlap.

    The tiles, overlaps and weights are those of diffusers' ``AutoencoderKL.tiled_decode``, but that a last tile which
    lies within the one before it is left out.

    Args:
        run: From (1, C, h, w) to (1, D, H, W), an array of its own each time, which is written to.
        x: Shape (1, C, h, w).
        tile: Side of a tile of ``x``, a multiple of 4.
        result_tile: Side of what the network makes of it, a multiple of 4.

    Returns:
        Shape (1, D, H, W).
    """
    stride, blend = tile - tile // OVERLAP, result_tile // OVERLAP
    kept = result_tile - blend
    above: list[Image] = []
    strips: list[Image] = []
    for top in _starts(x.shape[2], tile, stride):
        row: list[Image] = []
        for left in _starts(x.shape[3], tile, stride):
            part = run(np.ascontiguousarray(x[:, :, top : top + tile, left : left + tile]))
            if above:
                _blend(above[len(row)], part, blend, axis=2)
            if row:
                _blend(row[-1], part, blend, axis=3)
            row.append(part)
        strips.append(_joined(row, kept, axis=3))
        above = row
    return _joined(strips, kept, axis=2)


def _starts(size: int, tile: int, stride: int) -> range:
    """Where tiles begin: the last one reaches the end."""
    return range(0, max(size - tile, 0) + stride, stride)


def _blend(before: Image, after: Image, extent: int, axis: int) -> None:
    """Fades the end of one tile into the beginning of the next, which takes the result."""
    shape = [1] * 4
    shape[axis] = extent
    weight = (np.arange(extent, dtype=np.float32) / extent).reshape(shape)
    end, begin = [slice(None)] * 4, [slice(None)] * 4
    end[axis], begin[axis] = slice(-extent, None), slice(extent)
    overlap = after[tuple(begin)]
    overlap *= weight
    overlap += before[tuple(end)] * (1 - weight)


def _joined(parts: list[Image], kept: int, axis: int) -> Image:
    """Tiles side by side: of all but the last what the next does not take over."""
    cut = [slice(None)] * 4
    cut[axis] = slice(kept)
    return np.concatenate([*(part[tuple(cut)] for part in parts[:-1]), parts[-1]], axis=axis)
