"""One style for every figure of the experiments.

A function that draws a figure is decorated with ``styled`` and creates the figure with ``new_figure``. matplotlib is
imported on the first call; neither pyplot nor a back end is touched, so figures work in a server and in a notebook
alike.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, ParamSpec

import numpy as np

from stepfuse.analysis.figures.layout import settle
from stepfuse.display import NAME, printable
from stepfuse.extras import pip_install

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

P = ParamSpec("P")

DPI = 150
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
    "text.usetex": False,  # TeX would run what a name says
}

#: A colour for each sampler, distinguishable with red-green colour blindness (Okabe & Ito, 2008); ``distilled`` is a
#: model rather than a sampler.
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
    """An empty figure with automatic layout: add axes with its ``subplots`` or ``subplot_mosaic``.

    Args:
        width: Inches; at 8, text is of the right size in a README.
        height: Inches.

    Raises:
        ImportError: If matplotlib is not installed; the message names the extra to install.
    """
    _matplotlib()
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Decorates a function that draws a figure: ``STYLE`` overrides the user's own matplotlib settings inside.

    The figure's layout is settled at the end, so that a change of its size moves nothing.
    """

    @functools.wraps(draw)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with _matplotlib().rc_context(STYLE):
            figure = draw(*args, **kwargs)
            settle(figure)
            return figure

    return wrapper


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Writes a figure in the format of the file name's suffix; labels outside of the axes are not cut off.

    The margin begins at a whole pixel, so that pictures keep their sharp edges.

    Examples:
        >>> from matplotlib.figure import Figure
        >>> from stepfuse.analysis import save_figure
        >>> save_figure(Figure(), "empty.png")
    """
    from matplotlib.transforms import Bbox

    with _matplotlib().rc_context(STYLE):
        figure.draw_without_rendering()
        box = figure.get_tightbbox().padded(0.12)
        whole = np.concatenate([np.floor(box.p0 * figure.dpi), np.ceil(box.p1 * figure.dpi)]) / figure.dpi
        figure.savefig(path, bbox_inches=Bbox(whole.reshape(2, 2)), dpi=figure.dpi)


def sampler_colour(sampler: str) -> str:
    """The sampler's colour in every figure; a neutral one for a sampler without a colour of its own."""
    return SAMPLER_COLOURS.get(sampler, FAINT)


def cond_suffix(cond: str) -> str:
    """The end of a figure's title that names the conditioning, its dollar signs no formula; empty if there is none."""
    return ", " + printable(cond, NAME).replace("$", r"\$") if cond else ""


def plain_log_axis(axis: Axis) -> None:
    """A logarithmic axis with numbers in full, as many as its span needs: powers of ten alone beyond four decades."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    low, high = axis.get_view_interval()
    if high > 1e4 * low:
        return
    if high < 300 * low:
        several = (1.0, 2.0, 5.0) if high > 4 * low else (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0)
        axis.set_major_locator(LogLocator(subs=several))
        axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(FuncFormatter(lambda _value, _: ""))


def log_steps_axis(axes: Axes, counts: Sequence[int]) -> None:
    """A logarithmic x axis of step counts, with ticks at these alone."""
    axes.set_xscale("log")
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.minorticks_off()


def _matplotlib() -> ModuleType:
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError(f"figures need matplotlib: {pip_install('analysis')}") from error
    return matplotlib
