"""Pictures inside of figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def drawable(shape: Sequence[int]) -> bool:
    """Whether samples of this shape are pictures, grey or RGB, which ``show_images`` can draw."""
    return len(shape) == 3 and shape[0] in (1, 3)


def tile_images(
    images: npt.NDArray[np.floating[Any]], *, data_range: tuple[float, float] = (-1.0, 1.0), columns: int | None = None
) -> npt.NDArray[np.uint8]:
    """Pictures side by side as one, white between them.

    Args:
        images: Shape (n, C, H, W), or (rows, columns, C, H, W); C = 1 (grey) or 3 (RGB). NaN is white.
        data_range: Values shown as black and at full intensity; values beyond are clipped.
        columns: Pictures a row for shape (n, C, H, W); None puts all into one row.

    Returns:
        Shape (height, width, 3).

    Raises:
        ValueError: If ``images`` has another shape or is empty.
    """
    images = np.asarray(images)
    if images.ndim == 5:
        columns = images.shape[1]
        images = images.reshape(-1, *images.shape[2:])
    if images.ndim != 4 or not drawable(images.shape[1:]) or not len(images):
        raise ValueError(f"images must have shape (n, 1 or 3, H, W) to be drawn, got {images.shape}")
    low, high = data_range
    columns = columns or len(images)
    rows = -(-len(images) // columns)
    height, width = images.shape[2:]
    gap = _gap(images.shape[-1])
    tiled = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, dtype=np.uint8)
    levels = (np.clip((np.nan_to_num(images, nan=high) - low) / (high - low), 0, 1) * 255).round().astype(np.uint8)
    for index, picture in enumerate(levels):
        y, x = index // columns * (height + gap), index % columns * (width + gap)
        tiled[y : y + height, x : x + width] = picture.transpose(1, 2, 0)
    return tiled


def show_images(
    axes: Axes,
    images: npt.NDArray[np.floating[Any]],
    *,
    data_range: tuple[float, float] = (-1.0, 1.0),
    columns: int | None = None,
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
) -> None:
    """Draws pictures side by side into ``axes``, with labels left of the rows and above the columns.

    Args:
        axes: Loses its frame and ticks.
        images: As for ``tile_images``, and so are ``data_range`` and ``columns``.
        data_range: Values shown as black and at full intensity.
        columns: Pictures a row.
        row_labels: One a row, or none.
        column_labels: One a column, or none.

    Raises:
        ValueError: If ``images`` is nothing that ``tile_images`` takes.
    """
    axes.imshow(tile_images(images, data_range=data_range, columns=columns))
    height, width = np.shape(images)[-2:]
    gap = _gap(width)
    axes.set_anchor("W")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    axes.set_yticks([i * (height + gap) + (height - 1) / 2 for i in range(len(row_labels))], row_labels)
    axes.set_xticks([i * (width + gap) + (width - 1) / 2 for i in range(len(column_labels))], column_labels)


def annotate_rows(axes: Axes, texts: Sequence[str]) -> None:
    """Writes a text right of each row of pictures that ``show_images`` has drawn with row labels."""
    right = axes.get_xlim()[1] * 1.015
    for middle, text in zip(axes.get_yticks(), texts, strict=True):
        axes.text(right, middle, text, va="center", fontsize=9)


def _gap(width: int) -> int:
    return max(1, math.ceil(width / 14))
