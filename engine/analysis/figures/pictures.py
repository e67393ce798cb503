"""Pictures inside of figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from stepfuse.analysis.figures.layout import PICTURES
from stepfuse.analysis.figures.style import DPI, FAINT

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def drawable(shape: Sequence[int]) -> bool:
    """Whether samples of this shape are pictures, grey or RGB, which ``show_images`` can draw."""
    return len(shape) == 3 and shape[0] in (1, 3)


def as_levels(images: npt.NDArray[np.floating[Any]], data_range: tuple[float, float]) -> npt.NDArray[np.uint8]:
    """Values as levels from 0 to 255, clipped to ``data_range``; NaN is 255."""
    low, high = data_range
    share = (np.nan_to_num(images, nan=high) - low) / (high - low)
    return np.asarray((np.clip(share, 0, 1) * 255).round(), dtype=np.uint8)


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
    columns = columns or len(images)
    rows = -(-len(images) // columns)
    height, width = images.shape[2:]
    gap = _gap(images.shape[-1])
    tiled = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, dtype=np.uint8)
    for index, picture in enumerate(as_levels(images, data_range)):
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
    """Draws pictures side by side into ``axes``, each framed, with labels left of the rows and above the columns.

    ``layout.settle`` enlarges them by a whole factor.

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
    from matplotlib.patches import Rectangle

    axes.imshow(tile_images(images, data_range=data_range, columns=columns))
    images = np.asarray(images)
    height, width = images.shape[-2:]
    gap = _gap(width)
    columns = images.shape[1] if images.ndim == 5 else columns or len(images)
    for index, picture in enumerate(images.reshape(-1, *images.shape[-3:])):
        if not np.isnan(picture).all():
            corner = (index % columns * (width + gap) - 0.5, index // columns * (height + gap) - 0.5)
            frame = Rectangle(corner, width, height, fill=False, edgecolor=FAINT, linewidth=0.6, clip_on=False)
            axes.add_patch(frame)
    axes.set_gid(PICTURES)
    axes.set_anchor("NW")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    axes.set_yticks([i * (height + gap) + (height - 1) / 2 for i in range(len(row_labels))], row_labels)
    axes.set_xticks([i * (width + gap) + (width - 1) / 2 for i in range(len(column_labels))], column_labels)


def height_of(rows: int, columns: int, shape: Sequence[int], room: float) -> float:
    """The height in inches of a grid of pictures that is enlarged as far as its width stays within ``room``.

    Args:
        rows: Of the grid.
        columns: Of the grid.
        shape: Of one picture, its height and width last.
        room: Inches.
    """
    height, width = shape[-2:]
    gap = _gap(width)
    down, across = rows * (height + gap) - gap, columns * (width + gap) - gap
    factor = room * DPI / across
    return float(down * (int(factor) if factor >= 1 else factor) / DPI)


def annotate_rows(axes: Axes, texts: Sequence[str]) -> None:
    """Writes a text right of each row of pictures that ``show_images`` has drawn with row labels."""
    right = axes.get_xlim()[1] * 1.015
    for middle, text in zip(axes.get_yticks(), texts, strict=True):
        axes.text(right, middle, text, va="center", fontsize=9)


def _gap(width: int) -> int:
    return max(1, math.ceil(width / 14))
