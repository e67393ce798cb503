"""The figure of ``frontier``: latency against distance, with a label at every point."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from stepfuse.analysis.experiments.frontier import Frontier, FrontierRow
from stepfuse.analysis.figures.pictures import drawable, show_images
from stepfuse.analysis.figures.style import FAINT, new_figure, sampler_colour, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation

_Box: TypeAlias = tuple[float, float, float, float]  # pixels: left, bottom, right, top
_LabelPosition: TypeAlias = tuple[
    tuple[float, float], Literal["left", "center", "right"], Literal["bottom", "center", "top"]
]  # direction from the marker, alignment

PICTURES = 2  # of each row that is shown

_GAP = 6  # points between a marker and its label
_LABEL_POSITIONS: tuple[_LabelPosition, ...] = (
    ((0, 1), "center", "bottom"),
    ((0, -1), "center", "top"),
    ((1, 0), "left", "center"),
    ((-1, 0), "right", "center"),
    ((0.8, 0.8), "left", "bottom"),
    ((0.8, -0.8), "left", "top"),
    ((-0.8, 0.8), "right", "bottom"),
    ((-0.8, -0.8), "right", "top"),
    ((0, 2.6), "center", "bottom"),
    ((0, -2.6), "center", "top"),
)


@styled
def draw_frontier(result: Frontier) -> Figure:
    """Latency of one sample against the distance to real data, and samples of some rows from the same noise.

    Both axes are logarithmic. Passes take the place of the distance if the samples were not judged.
    """
    pictured = _pictured(result)
    height = 4.9 + (0.6 + 8.4 * PICTURES / max(len(pictured), PICTURES) if pictured else 0)
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
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set_minor_formatter(lambda value, _: "")
    axes.margins(x=0.09, y=0.1)
    axes.grid(visible=True, which="major")
    axes.set_title("Latency and quality: to the left is faster" + (", further down is better" if judged else ""))
    _explain_filling(axes, result)
    _label(figure, axes, rows, column)
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
    if not scales:
        return
    folded = result.guidance_scale if any(row.model == "student" for row in result.rows) else None
    for scale in (1.0, *scales):
        filling = _filling_of(scale, scales)
        text = "no guidance" if scale == 1 else f"guidance {scale:g}"
        text += " (in distilled: folded in)" if scale == folded else ""
        axes.plot([], [], "o", color=FAINT, markerfacecolor=_tint(FAINT, filling), markersize=7, label=text)
    axes.legend(loc="upper right")


def _series(rows: Sequence[FrontierRow]) -> Iterator[list[FrontierRow]]:
    """Rows that differ in their steps alone, the fewest first."""
    found: dict[tuple[str, str, float], list[FrontierRow]] = {}
    for row in rows:
        found.setdefault((row.model, row.sampler, row.guidance_scale), []).append(row)
    for series in found.values():
        yield sorted(series, key=lambda row: row.steps)


def _colour(row: FrontierRow) -> str:
    return sampler_colour("distilled" if row.model == "student" else row.sampler)


def _label(figure: Figure, axes: Axes, rows: Sequence[FrontierRow], column: str) -> None:
    """Labels every point at the position where the label covers least of points, lines and other labels."""
    figure.draw_without_rendering()  # lays the axes out, so that points have pixel coordinates
    pixels = {row: axes.transData.transform((row.latency_ms, getattr(row, column))) for row in rows}
    points = list(pixels.values())
    taken: list[_Box] = [(x - 6, y - 6, x + 6, y + 6) for x, y in points]
    for series in _series(rows):
        taken += _boxes_along([pixels[row] for row in series])
    if legend := axes.get_legend():
        taken.append(cast(_Box, tuple(legend.get_window_extent().extents)))
    frame = axes.get_window_extent().extents
    # The most crowded points first: the others have free positions anyway.
    for index in sorted(range(len(rows)), key=lambda i: _nearest(points, i)):
        row = rows[index]
        name = row.label.split(",")[0]  # the marker's filling shows the guidance
        point = row.latency_ms, getattr(row, column)
        label = axes.annotate(name, point, (0, 0), textcoords="offset points", fontsize=8.5, color=_colour(row))
        label.set_in_layout(False)
        best = min(
            _LABEL_POSITIONS,
            key=lambda one: (_overlap(_placed(label, one), taken, frame), _LABEL_POSITIONS.index(one)),
        )
        taken.append(_placed(label, best))


def _boxes_along(corners: Sequence[npt.NDArray[np.float64]]) -> list[_Box]:
    """Small boxes that cover a line through these pixels."""
    boxes: list[_Box] = []
    for start, stop in itertools.pairwise(corners):
        for share in np.linspace(0, 1, int(np.hypot(*(stop - start)) / 4) + 2):
            x, y = start + share * (stop - start)
            boxes.append((x - 2, y - 2, x + 2, y + 2))
    return boxes


def _nearest(points: Sequence[npt.NDArray[np.float64]], index: int) -> float:
    others = [float(np.hypot(*(point - points[index]))) for i, point in enumerate(points) if i != index]
    return min(others, default=0.0)


def _placed(label: Annotation, position: _LabelPosition) -> _Box:
    """Moves a label to a position, and returns the box that it covers."""
    (right, up), horizontal, vertical = position
    label.set_position((right * _GAP, up * _GAP))
    label.set_horizontalalignment(horizontal)
    label.set_verticalalignment(vertical)
    left, bottom, right, top = label.get_window_extent().extents
    return left, bottom, right, top


def _overlap(box: _Box, taken: Sequence[_Box], frame: Sequence[float]) -> float:
    """Pixels of a box that other boxes cover, or that lie outside of the frame."""
    left, bottom, right, top = box
    inside = _common(box, frame)
    return (right - left) * (top - bottom) - inside + sum(_common(box, other) for other in taken)


def _common(a: Sequence[float], b: Sequence[float]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(0.0, width) * max(0.0, height)
