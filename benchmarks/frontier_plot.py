"""The picture of ``frontier.py``: few samplers, with the noise levels that are best for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from frontier_results import FITTED, Row, best, select
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stepfuse.analysis.figures.style import FAINT, INK, PALE, log_steps_axis, new_figure, plain_log_axis, styled

YARDSTICK = "ddim"
SHOWN, NOISY = 3, 1  # samplers without noise beside the yardstick, and with it
#: Distinguishable with red-green colour blindness (Okabe & Ito, 2008).
COLOURS = ("#d55e00", "#0072b2", "#cc79a7", "#e69f00", "#009e73")


@styled
def draw_frontier(rows: Sequence[Row], problems: Mapping[str, Any]) -> Figure:
    """RMS to the exact solution above, distance below, a column a problem.

    Args:
        rows: Of the benchmark's JSON.
        problems: Its ``exact_distances`` by problem.
    """
    names = list(problems)
    figure = new_figure(3.2 * len(names) + 0.6, 6.0)
    grid = figure.subplots(2, len(names), squeeze=False)
    lines = shown(rows)
    for column, problem in enumerate(names):
        own = select(rows, problem=problem)
        _draw(grid[0, column], own, lines, "rms")
        _draw(grid[1, column], own, lines, "distance")
        low, high = sorted(problems[problem]["exact_distances"])
        grid[1, column].axhspan(low, high, color=PALE, zorder=0)
        grid[0, column].set_title(problem)
    grid[0, 0].set_ylabel("RMS to the exact solution")
    grid[1, 0].set_ylabel("distance to the data")
    handles = {}
    for axes in grid.ravel():
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(name, handle)
    handles["exact solution, two sets of noises"] = grid[1, 0].patches[0]
    figure.legend(list(handles.values()), list(handles), loc="outside upper left", ncols=4)
    return figure


def shown(rows: Sequence[Row]) -> dict[str, str]:
    """Colours of the samplers that are shown: the nearest on average, the yardstick, and the best with noise."""
    found = {FITTED: INK, YARDSTICK: FAINT}
    colours = iter(COLOURS)
    for noise, figure, count in ((False, "rms", SHOWN), (True, "distance", NOISY)):
        made = [row for row in select(rows, noise=noise) if row["levels"] != FITTED and row["sampler"] not in found]
        ranked = sorted({row["sampler"] for row in made}, key=lambda name: _mean_log(made, name, figure))
        found |= {name: next(colours) for name in ranked[:count]}
    return found


def _mean_log(rows: Sequence[Row], sampler: str, figure: str) -> float:
    """Mean logarithm of a sampler's figure over the least of all, at every problem and number of forwards."""
    ratios = []
    for problem, forwards in {(row["problem"], row["forwards"]) for row in rows}:
        same = select(rows, problem=problem, forwards=forwards)
        least, own = best(same, figure), best(select(same, sampler=sampler), figure)
        if least and own:
            ratios.append(np.log(own[figure] / least[figure]))
    return float(np.mean(ratios))


def _draw(axes: Axes, rows: Sequence[Row], lines: Mapping[str, str], figure: str) -> None:
    counts = sorted({row["forwards"] for row in rows})
    for sampler, colour in lines.items():
        same = select(rows, levels=FITTED) if sampler == FITTED else select(rows, sampler=sampler)
        found = [best(select(same, forwards=count), figure) for count in counts]
        points = [(row["forwards"], row[figure]) for row in found if row is not None]
        if not points:
            continue
        dashed = "--" if any(row["noise"] for row in same) else "-"
        style = "D" if sampler == FITTED else f"o{dashed}"
        axes.plot(*zip(*points, strict=True), style, color=colour, markersize=4.5, label=sampler)
    log_steps_axis(axes, counts)
    axes.set_yscale("log")
    axes.set_xlabel("forwards")
    plain_log_axis(axes.yaxis)
    axes.grid(visible=True, axis="y")
