"""Labels beside what they name, where they cover no point, line, legend or other label."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from stepfuse.analysis.figures.layout import settle
from stepfuse.analysis.figures.style import INK

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

Boxes = npt.NDArray[np.float64]  # pixels, a box a row: left, bottom, right, top

BACKGROUND = 0  # zorder of what labels may cover: grids, bands
_GAP = 6  # points between what is labelled and the nearest label
_MARGIN = 2  # pixels that stay free around a label
_POSITIONS: tuple[tuple[float, float], ...] = (  # directions, the most readable first
    (0, 1),
    (0, -1),
    (1, 0),
    (-1, 0),
    (0.8, 0.8),
    (0.8, -0.8),
    (-0.8, 0.8),
    (-0.8, -0.8),
    (0.7, 1.8),
    (0.7, -1.8),
    (-0.7, 1.8),
    (-0.7, -1.8),
)
_REACHES = (1.0, 1.7, 2.6, 3.8, 5.5)  # in gaps; a label that is further away than the first has a line to its point
_ALIGNED: dict[int, tuple[Literal["left", "center", "right"], Literal["bottom", "center", "top"]]] = {
    -1: ("right", "top"),
    0: ("center", "center"),
    1: ("left", "bottom"),
}


class Label(NamedTuple):
    """A label and what it names.

    Attributes:
        text: On one line or several.
        anchors: Points in data coordinates, of which it goes beside one; the first is the best.
        colour: Of the text.
    """

    text: str
    anchors: Sequence[tuple[float, float]]
    colour: str = INK


def place_labels(axes: Axes, labels: Sequence[Label], *, fontsize: float = 8.5, to_the_right: bool = False) -> None:
    """Writes each label beside its anchor, the most crowded first, and moves those that others came to crowd.

    The figure's layout is settled by that: call it when all else is drawn.

    Args:
        axes: Have what the labels name, and the legend.
        labels: At least one anchor each.
        fontsize: Points.
        to_the_right: Whether the right of an anchor is tried first, as at the end of a line, instead of above it.
    """
    figure = axes.figure
    settle(figure)  # type: ignore[arg-type]
    if not labels:
        return
    occupied = _occupied(axes)
    frame = axes.get_window_extent().extents
    points = np.array([axes.transData.transform(label.anchors[0]) for label in labels])
    positions = sorted(_POSITIONS, key=lambda one: one != (1, 0)) if to_the_right else _POSITIONS
    order = sorted(range(len(labels)), key=lambda index: _nearest(points, index))
    sizes = [_size(axes, label.text, fontsize) for label in labels]
    placed: dict[int, _Placed] = {}
    for _round in range(3):  # from the second on, labels know where all others are
        for index in order:
            others = [one.box for at, one in placed.items() if at != index]
            taken = np.concatenate([occupied, *others])
            placed[index] = _best(axes, labels[index], sizes[index], positions, taken, frame)
    for index, one in placed.items():
        _write(axes, labels[index], one, fontsize)


class _Placed(NamedTuple):
    anchor: tuple[float, float]
    offset: tuple[float, float]  # points
    near: bool
    box: Boxes


def _size(axes: Axes, text: str, fontsize: float) -> npt.NDArray[np.float64]:
    """Width and height in pixels."""
    written = axes.text(0, 0, text, fontsize=fontsize)
    box = written.get_window_extent()
    written.remove()
    return np.array([box.width, box.height])


def _best(
    axes: Axes,
    label: Label,
    size: npt.NDArray[np.float64],
    positions: Sequence[tuple[float, float]],
    taken: Boxes,
    frame: Any,
) -> _Placed:
    """The position in which a label covers least; of those in which it covers nothing, the first."""
    found, least = None, np.inf
    for reach, anchor, direction in itertools.product(_REACHES, label.anchors, positions):
        offset = reach * _GAP * np.array(direction)
        at = np.asarray(axes.transData.transform(anchor)) + offset * axes.figure.dpi / 72
        corner = at - size * (1 - np.sign(direction)) / 2
        box = np.concatenate([corner - _MARGIN, corner + size + _MARGIN])[None]
        covered = _covered(box, taken, frame)
        if covered < least:
            found, least = _Placed(anchor, (float(offset[0]), float(offset[1])), reach == _REACHES[0], box), covered
        if not covered:
            break
    assert found is not None
    return found


def _write(axes: Axes, label: Label, placed: _Placed, fontsize: float) -> None:
    right, up = np.sign(placed.offset).astype(int).tolist()
    (horizontal, _), (_, vertical) = _ALIGNED[right], _ALIGNED[up]
    line = {"arrowstyle": "-", "color": label.colour, "linewidth": 0.6, "alpha": 0.6, "shrinkA": 0, "shrinkB": 3}
    axes.annotate(
        label.text, placed.anchor, placed.offset, textcoords="offset points", fontsize=fontsize, color=label.colour,
        ha=horizontal, va=vertical, arrowprops=None if placed.near else line,
    ).set_in_layout(False)  # fmt: skip


def _covered(box: Boxes, taken: Boxes, frame: Any) -> float:
    """Pixels of a box that others cover, or that lie outside of the frame."""
    area = float(np.prod(box[0, 2:] - box[0, :2]))
    return area - float(_common(box, frame[None])[0]) + float(_common(box, taken).sum())


def _common(box: Boxes, others: Boxes) -> npt.NDArray[np.float64]:
    sides = np.minimum(box[:, 2:], others[:, 2:]) - np.maximum(box[:, :2], others[:, :2])
    return np.asarray(sides.clip(min=0.0).prod(1))


def _occupied(axes: Axes) -> Boxes:
    """Boxes of the markers, lines, bars, texts and legend of axes."""
    found = [np.empty((0, 4))]
    points = axes.figure.dpi / 72
    for line in axes.get_lines():
        at = line.get_transform().transform(line.get_xydata())
        if line.get_zorder() <= BACKGROUND or not len(at):
            continue
        if line.get_marker() not in ("None", "", None):
            half = points * (line.get_markersize() / 2 + 1)
            found.append(np.hstack([at - half, at + half]))
        if line.get_linestyle() not in ("None", "", None):
            found += [_along(*ends) for ends in itertools.pairwise(at)]
    for cloud in axes.collections:
        at = cloud.get_offset_transform().transform(cloud.get_offsets())
        found.append(np.hstack([at - 2 * points, at + 2 * points]))
    legend = axes.get_legend()
    shown: list[Artist] = [
        *axes.patches,
        *(text for text in axes.texts if text.get_text()),
        *([legend] if legend else []),
    ]
    covered = [one for one in shown if one.get_zorder() > BACKGROUND]
    found += [np.asarray(one.get_window_extent().extents)[None] for one in covered]
    return np.concatenate(found)


def _along(start: Any, stop: Any) -> Boxes:
    """Small boxes that cover a line from pixel to pixel."""
    share = np.linspace(0, 1, int(np.hypot(*(stop - start)) / 4) + 2)[:, None]
    at = start + share * (stop - start)
    return np.hstack([at - 2, at + 2])


def _nearest(points: npt.NDArray[np.float64], index: int) -> float:
    others = np.delete(points, index, axis=0)
    return float(np.hypot(*(others - points[index]).T).min()) if len(others) else 0.0


def legend_row(axes: Axes, *, columns: int = 0, beside: Sequence[Axes] = ()) -> None:
    """A legend between the axes and their title, where it covers nothing; none if nothing has a label.

    Args:
        axes: Have their title already.
        columns: Entries side by side; 0 is all of them.
        beside: Axes to the right, above which the legend may go on; they keep as much room below their titles.
    """
    handles, names = axes.get_legend_handles_labels()
    if not names:
        return
    columns = columns or len(names)
    legend = axes.legend(
        handles, names, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=columns, borderaxespad=0.2,
        borderpad=0.2, columnspacing=1.4, handletextpad=0.5,
    )  # fmt: skip
    legend.set_in_layout(not beside)
    rows = -(-len(names) // columns)
    for one in (axes, *beside):
        one.set_title(one.get_title(loc="left"), loc="left", pad=8 + 15 * rows)
