"""The figure of ``frontier``: latency against distance, with a label at every point."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from stepfuse.analysis.experiments.frontier import Frontier, FrontierRow
from stepfuse.analysis.figures.labels import Label, legend_row, place_labels
from stepfuse.analysis.figures.pictures import drawable, height_of, show_images
from stepfuse.analysis.figures.style import FAINT, new_figure, plain_log_axis, sampler_colour, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PICTURES = 2  # of each row that is shown


@styled
def draw_frontier(result: Frontier) -> Figure:
    """Latency of one sample against the distance to real data, and samples of some rows from the same noise.

    Both axes are logarithmic. Passes take the place of the distance if the samples were not judged.

    Examples:
        >>> from stepfuse.analysis import draw_frontier, frontier, save_figure
        >>> with sf.Engine.load("fashion") as engine:
        ...     found = frontier(engine, samples=2, latency_repeats=1, configurations=[("ddim", {"steps": 3})])
        >>> save_figure(draw_frontier(found), "frontier.png")
    """
    pictured = _pictured(result)
    shape = result.images.shape if result.images is not None else ()
    height = 4.9 + (0.8 + height_of(PICTURES, max(len(pictured), PICTURES), shape, 8.2) if pictured else 0)
    figure = new_figure(9.0, height)
    if pictured:
        axes, below = figure.subplots(2, height_ratios=[4.9, height - 4.9])
        _draw_pictures(below, result, pictured)
    else:
        axes = figure.subplots()
    judged = [row for row in result.rows if row.distance is not None]
    column, rows = ("distance", judged) if judged else ("passes", list(result.rows))
    for series in _series(rows):
        x, y = [row.latency_ms for row in series], [getattr(row, column) for row in series]
        colour, filling = _colour(series[0]), _filling(result, series[0])
        axes.plot(x, y, "-", color=colour, alpha=0.35, linewidth=1.5, zorder=1)
        axes.plot(x, y, "o", color=colour, markerfacecolor=_tint(colour, filling), markersize=7, zorder=3)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("latency of one sample, ms")
    axes.set_ylabel("Fréchet distance to real images" if judged else "network passes a sample")
    axes.margins(x=0.09, y=0.1)
    for axis in (axes.xaxis, axes.yaxis):
        plain_log_axis(axis)
    axes.grid(visible=True, which="major")
    axes.set_title("Latency and quality: to the left is faster" + (", further down is better" if judged else ""))
    _explain_filling(axes, result)
    _label(axes, rows, column)
    return figure


def _pictured(result: Frontier) -> list[int]:
    """Indices of the rows shown as pictures, the fastest first: the student's, those of 50 steps, and DDPM."""
    if result.images is None or not drawable(result.images.shape[2:]):
        return []
    found = [
        i for i, row in enumerate(result.rows) if row.model == "student" or row.steps == 50 or row.sampler == "ddpm"
    ]
    return sorted(found, key=lambda i: result.rows[i].latency_ms)


def _draw_pictures(axes: Axes, result: Frontier, pictured: Sequence[int]) -> None:
    assert result.images is not None
    images = np.moveaxis(result.images[list(pictured), -PICTURES:], 0, 1)
    labels = [result.rows[i].label.replace("d DDPM", "d\nDDPM").replace(", ", "\n") for i in pictured]
    show_images(axes, images, data_range=result.data_range, column_labels=labels)
    axes.tick_params(axis="x", labelsize=8)


def _filling(result: Frontier, row: FrontierRow) -> float:
    """Filling of a marker: 0 without guidance, 1 at the strongest; a student has its teacher's guidance."""
    return _filling_of(result.guidance_scale if row.model == "student" else row.guidance_scale, _scales(result))


def _filling_of(scale: float, scales: list[float]) -> float:
    return 0.0 if scale == 1 else (scales.index(scale) + 1) / len(scales)


def _scales(result: Frontier) -> list[float]:
    return sorted({result.guidance_scale, *(row.guidance_scale for row in result.rows)} - {1.0})


def _tint(colour: str, filling: float) -> tuple[float, float, float]:
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    share = filling**1.5  # keeps the lightest distinguishable from white, and a middle one from full
    return 1 - share * (1 - red), 1 - share * (1 - green), 1 - share * (1 - blue)


def _explain_filling(axes: Axes, result: Frontier) -> None:
    scales = _scales(result)
    fillings = {_filling(result, row) for row in result.rows}
    if fillings == {0.0}:
        return
    folded = result.guidance_scale if any(row.model == "student" for row in result.rows) else None
    for scale in (one for one in (1.0, *scales) if _filling_of(one, scales) in fillings):
        filling = _filling_of(scale, scales)
        text = "no guidance" if scale == 1 else f"guidance {scale:g}"
        text += " (in distilled: folded in)" if scale == folded else ""
        axes.plot([], [], "o", color=FAINT, markerfacecolor=_tint(FAINT, filling), markersize=7, label=text)
    legend_row(axes)


def _series(rows: Sequence[FrontierRow]) -> Iterator[list[FrontierRow]]:
    """Rows that differ in their steps alone, the fewest first."""
    found: dict[tuple[str, str, float], list[FrontierRow]] = {}
    for row in rows:
        found.setdefault((row.model, row.sampler, row.guidance_scale), []).append(row)
    for series in found.values():
        yield sorted(series, key=lambda row: row.steps)


def _colour(row: FrontierRow) -> str:
    return sampler_colour("distilled" if row.model == "student" else row.sampler)


def _label(axes: Axes, rows: Sequence[FrontierRow], column: str) -> None:
    """Labels every point with its sampler and steps; the marker's filling shows the guidance."""
    points = [Label(row.label.split(",")[0], [(row.latency_ms, getattr(row, column))], _colour(row)) for row in rows]
    place_labels(axes, points)
