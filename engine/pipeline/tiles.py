"""A convolutional network over a large image: in tiles that overlap and are blended."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.float32]

OVERLAP = 4  # a tile shares a quarter of its side with the next, as in diffusers


def tiled(run: Callable[[Image], Image], x: Image, tile: int, result_tile: int) -> Image:
    """Runs a network on tiles of ``x`` and joins the results, blended linearly where tiles overlap.

    The tiles, overlaps and weights are those of diffusers' ``AutoencoderKL.tiled_decode``, except that a last tile
    within the one before it is left out.

    Args:
        run: From (1, C, h, w) to (1, D, H, W), a new array each time, which is overwritten here.
        x: Shape (1, C, h, w).
        tile: Side of a tile of ``x``, a multiple of 4.
        result_tile: Side of the network's result for such a tile, a multiple of 4.

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
            result = run(np.ascontiguousarray(x[:, :, top : top + tile, left : left + tile]))
            if above:
                _blend(above[len(row)], result, blend, axis=2)
            if row:
                _blend(row[-1], result, blend, axis=3)
            row.append(result)
        strips.append(_joined(row, kept, axis=3))
        above = row
    return _joined(strips, kept, axis=2)


def _starts(size: int, tile: int, stride: int) -> range:
    """Where tiles begin; the last one reaches the end."""
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


def _joined(tiles: list[Image], kept: int, axis: int) -> Image:
    """Tiles side by side; of each but the last, the first ``kept`` elements, which the next does not overlap."""
    cut = [slice(None)] * 4
    cut[axis] = slice(kept)
    return np.concatenate([*(tile[tuple(cut)] for tile in tiles[:-1]), tiles[-1]], axis=axis)
