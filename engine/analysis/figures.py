"""One look for every figure of the experiments, and pictures inside of them.

A function that draws is decorated with ``styled`` and makes its figure with ``new_figure``. matplotlib is imported when
something is drawn; neither pyplot nor a back end is touched, so it draws in a server and in a notebook alike.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

P = ParamSpec("P")
R = TypeVar("R")

INK, FAINT, PALE = "#1f2430", "#8a90a0", "#e4e6ec"
STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.facecolor": "white",
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": False,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": PALE,
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.facecolor": "white",
    "figure.titlesize": 12,
    "figure.titleweight": "bold",
    "svg.fonttype": "none",
}

#: What a reader calls a sampler.
SAMPLER_TITLES = {
    "ddim": "DDIM",
    "ddpm": "DDPM",
    "ddpm_strided": "naive strided DDPM",
    "dpmpp_2m": "DPM-Solver++ 2M",
    "euler": "Euler",
    "heun": "Heun",
    "lcm": "LCM",
}
#: A colour each, told apart without red and green (Okabe & Ito, 2008). ``distilled`` is a model rather than a sampler.
SAMPLER_COLOURS = {
    "ddim": "#0072b2",
    "ddpm": "#009e73",
    "ddpm_strided": "#d55e00",
    "dpmpp_2m": "#cc79a7",
    "euler": "#56b4e9",
    "heun": "#e69f00",
    "lcm": "#6b7280",
    "distilled": "#6a3d9a",
}


def new_figure(width: float = 8.0, height: float = 4.5) -> Figure:
    """An empty figure that lays itself out: add axes with its ``subplots`` or ``subplot_mosaic``.

    Args:
        width: Inches; at 8, text is of the right size in a README.
        height: Inches.

    Raises:
        ImportError: If matplotlib is not installed; it says what to install.
    """
    _matplotlib()
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=150, layout="constrained")


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Has all that ``draw`` makes look alike, whatever the user's own settings of matplotlib are."""

    @functools.wraps(draw)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        with _matplotlib().rc_context(STYLE):
            return draw(*args, **kwargs)

    return wrapper


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Writes a figure, its kind by the name's ending, with all labels that stick out."""
    figure.savefig(path, bbox_inches="tight", pad_inches=0.12)


def sampler_title(sampler: str, steps: int | None = None, options: str = "") -> str:
    """Such as ``DDIM 50 steps, eta 0``: a count of steps means nothing without its sampler."""
    title = SAMPLER_TITLES.get(sampler, sampler)
    if steps is not None:
        title += f" {steps} step{'s' if steps != 1 else ''}"
    return f"{title}, {options}" if options else title


def sampler_colour(sampler: str) -> str:
    """Its colour in every figure."""
    return SAMPLER_COLOURS.get(sampler, FAINT)


def drawable(shape: Sequence[int]) -> bool:
    """Whether samples of this shape are pictures, grey or RGB."""
    return len(shape) == 3 and shape[0] in (1, 3)


def tile_images(
    images: npt.NDArray[np.floating[Any]], *, data_range: tuple[float, float] = (-1.0, 1.0), columns: int | None = None
) -> npt.NDArray[np.uint8]:
    """Pictures side by side as one, white between them.

    Args:
        images: Shape (n, C, H, W), or (rows, columns, C, H, W); C = 1 (grey) or 3 (RGB). NaN stays white.
        data_range: Values shown as black and as full; those beyond are clipped.
        columns: Pictures a row; None puts all of the first form into one row.

    Returns:
        Shape (height, width, 3).

    Raises:
        ValueError: If they are no pictures.
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
        axes: Taken over: neither frame nor ticks are left.
        images: As for ``tile_images``, and so are ``data_range`` and ``columns``.
        data_range: Values shown as black and as full.
        columns: Pictures a row.
        row_labels: One a row, or none.
        column_labels: One a column, or none.

    Raises:
        ValueError: If they are no pictures.
    """
    axes.imshow(tile_images(images, data_range=data_range, columns=columns))
    height, width = np.shape(images)[-2:]
    gap = _gap(width)
    axes.set_anchor("W")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    axes.set_yticks([i * (height + gap) + (height - 1) / 2 for i in range(len(row_labels))], row_labels)
    axes.set_xticks([i * (width + gap) + (width - 1) / 2 for i in range(len(column_labels))], column_labels)


def _gap(width: int) -> int:
    return max(1, math.ceil(width / 14))


def _matplotlib() -> ModuleType:
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("figures need matplotlib: pip install 'stepfuse[analysis]'") from error
    return matplotlib
