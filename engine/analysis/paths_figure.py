"""The paths of ``paths`` as a picture: samplers side by side, from the same starts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from stepfuse.analysis.figures import FAINT, INK, new_figure, sampler_title, styled
from stepfuse.analysis.paths import Paths, PathsRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TRACED = 11


@styled
def draw_paths(result: Paths) -> Figure:
    """A panel a sampler: where samples begin (pale) and end, in the colour of their start, and some on their way."""
    count = len(result.rows)
    figure = new_figure(4.1 * count, 4.9)
    panels = figure.subplots(1, count, squeeze=False)[0]
    starts = result.trajectories[0][:, 0]
    colours = _by_angle(starts)
    traced = _spread_out(starts, min(_TRACED, len(starts)))
    reach = 1.08 * max(float(np.abs(states[:, -1]).max()) for states in result.trajectories)
    for axes, row, states in zip(panels, result.rows, result.trajectories, strict=True):
        _draw_panel(axes, result, states, colours, traced)
        axes.set_xlim(-reach, reach)
        axes.set_ylim(-reach, reach)
        axes.set_title(sampler_title(row.sampler, row.steps, row.options))
        axes.set_xlabel(_told(row), color=INK, labelpad=8)
    return figure


def _draw_panel(
    axes: Axes, result: Paths, states: npt.NDArray[np.float32], colours: list[str], traced: npt.NDArray[np.int64]
) -> None:
    from matplotlib.patches import Circle

    axes.set_aspect("equal")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    for mean, spread in zip(result.mixture.means, result.mixture.spreads, strict=True):
        for deviations in (3, 2, 1):
            axes.add_patch(Circle((mean[0], mean[1]), deviations * spread, color=FAINT, alpha=0.09, linewidth=0))
    axes.scatter(states[:, 0, 0], states[:, 0, 1], s=3, c=colours, alpha=0.35, linewidths=0)
    axes.scatter(states[:, -1, 0], states[:, -1, 1], s=9, c=colours, alpha=0.85, linewidths=0)
    width = 1.4 if states.shape[1] < 200 else 0.7
    for index in traced:
        path, colour = states[index], colours[index]
        axes.plot(path[:, 0], path[:, 1], color=colour, linewidth=width, alpha=0.95, solid_joinstyle="round")
    for index in traced:  # above all lines
        path, colour = states[index], colours[index]
        axes.plot(*path[0], "o", markersize=6, markerfacecolor="white", markeredgecolor=colour, markeredgewidth=1.8)
        axes.plot(*path[-1], "o", markersize=8, markerfacecolor=colour, markeredgecolor="white", markeredgewidth=1.4)


def _by_angle(starts: npt.NDArray[np.float32]) -> list[str]:
    """A hue for each start's direction, all of one lightness."""
    from matplotlib.colors import to_hex

    turn = np.arctan2(starts[:, 1], starts[:, 0]).astype(np.float64)
    waves = [0.5 + 0.32 * np.cos(turn - shift) for shift in (0.0, 2 * np.pi / 3, 4 * np.pi / 3)]
    return [to_hex(one) for one in zip(*(np.clip(wave, 0, 1) for wave in waves), strict=True)]


def _spread_out(starts: npt.NDArray[np.float32], count: int) -> npt.NDArray[np.int64]:
    """Starts in all directions, not too near the middle: the one nearest to each of ``count`` points on a circle."""
    turn = 2 * np.pi * (np.arange(count) + 0.25) / count
    wanted = 1.1 * np.stack([np.cos(turn), np.sin(turn)], axis=1)
    distance = np.linalg.norm(starts[None] - wanted[:, None], axis=2)
    return np.unique(distance.argmin(1))


def _told(row: PathsRow) -> str:
    again = "the same end in every run" if row.runs_apart == 0 else f"another run ends {row.runs_apart:.2g} away"
    turns = f"turns back {row.reversals:.0f} times"
    return f"a path is {row.path_length:.0f} long and {turns}\nfrom the same start, {again}"
