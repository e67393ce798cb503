"""The figure of ``paths``: samplers side by side, from the same starting noises."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from stepfuse.analysis.experiments.paths import Paths, PathsRow
from stepfuse.analysis.experiments.sampling import sampler_title
from stepfuse.analysis.experiments.wording import plural, short
from stepfuse.analysis.figures.style import FAINT, INK, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Points = npt.NDArray[np.float32]

_TRACED = 11
_LONG = 200  # steps from which lines are thin, since so long paths hide one another


@styled
def draw_paths(result: Paths) -> Figure:
    """A panel for each sampler: starts (pale) and ends of all samples, coloured by start, and the paths of some.

    One of the paths is black, so that the eye can follow it.

    Examples:
        >>> from stepfuse.analysis import draw_paths, paths, save_figure
        >>> found = paths(samples=30, samplers=[("ddim", {"steps": 10})])
        >>> save_figure(draw_paths(found), "paths.png")
    """
    count = len(result.rows)
    figure = new_figure(4.1 * count, 5.1 if count > 2 else 5.9)
    panels = figure.subplots(1, count, squeeze=False)[0]
    starts = result.trajectories[0][:, 0]
    traced = traced_samples(result)
    colours = _by_angle(starts)
    colours[traced[0]] = INK
    middle, reach = _view(result, traced)
    for axes, row, states in zip(panels, result.rows, result.trajectories, strict=True):
        _draw_panel(axes, result, states, colours, traced)
        axes.set_xlim(middle[0] - reach, middle[0] + reach)
        axes.set_ylim(middle[1] - reach, middle[1] + reach)
        axes.set_title(sampler_title(row.sampler, row.steps, row.options))
        axes.set_xlabel(_caption(row), color=INK, labelpad=8)
    wrapped = "" if count > 2 else "\n"
    figure.suptitle(
        f"From noise ○ to data ●. {wrapped}The same starts in every panel, {wrapped}coloured by direction,"
        " one of them black to follow",
        x=0.003,
        ha="left",
    )
    return figure


def traced_samples(result: Paths) -> list[int]:
    """Indices of the samples whose paths are drawn."""
    starts = result.trajectories[0][:, 0]
    return _spread_out(starts, min(_TRACED, len(starts)))


def _draw_panel(axes: Axes, result: Paths, states: Points, colours: list[str], traced: list[int]) -> None:
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
    width, alpha = (0.45, 0.5) if states.shape[1] > _LONG else (1.3, 0.85)
    for index in reversed(traced):  # the black one above the others
        followed = index == traced[0]
        axes.plot(
            states[index, :, 0],
            states[index, :, 1],
            color=colours[index],
            linewidth=1.3 * width if followed else width,
            alpha=1.0 if followed else alpha,
            solid_joinstyle="round",
        )
    for index in reversed(traced):  # above all lines
        path, colour = states[index], colours[index]
        axes.plot(*path[0], "o", markersize=6, markerfacecolor="white", markeredgecolor=colour, markeredgewidth=1.6)
        axes.plot(*path[-1], "o", markersize=7.5, markerfacecolor=colour, markeredgecolor="white", markeredgewidth=1.3)


def _view(result: Paths, traced: list[int]) -> tuple[npt.NDArray[np.float64], float]:
    """Middle and half width of the square that holds the data, all ends and every path that is drawn."""
    means, around = result.mixture.means, 3 * result.mixture.spreads[:, None]
    shown: list[npt.NDArray[Any]] = [means - around, means + around, *(states[:, -1] for states in result.trajectories)]
    shown += [states[traced].reshape(-1, 2) for states in result.trajectories]
    points = np.concatenate(shown, dtype=np.float64)
    low, high = points.min(0), points.max(0)
    return (low + high) / 2, 0.51 * float((high - low).max())


def _by_angle(starts: Points) -> list[str]:
    """A hue for each start's direction at equal lightness and chroma: a circle in OKLab (Ottosson, 2020)."""
    from matplotlib.colors import to_hex

    angle = np.arctan2(starts[:, 1], starts[:, 0]).astype(np.float64)
    lab = np.stack([np.full_like(angle, 0.66), 0.15 * np.cos(angle), 0.15 * np.sin(angle)], axis=1)
    linear = ((lab @ _LAB_TO_LMS.T) ** 3 @ _LMS_TO_RGB.T).clip(0, 1)
    rgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)  # IEC 61966-2-1
    return [to_hex(one) for one in rgb]


# https://bottosson.github.io/posts/oklab/: OKLab to the cube roots of cone responses, and their cubes to linear sRGB.
_LAB_TO_LMS = np.array(
    [[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728], [1, -0.0894841775, -1.2914855480]]
)
_LMS_TO_RGB = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)


def _spread_out(starts: Points, count: int) -> list[int]:
    """Indices of starts in all directions: the one nearest to each of ``count`` points on a circle."""
    angle = 2 * np.pi * (np.arange(count) + 0.25) / count
    wanted = 1.1 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    distance = np.linalg.norm(starts[None] - wanted[:, None], axis=2)
    return list(dict.fromkeys(distance.argmin(1).tolist()))


def _caption(row: PathsRow) -> str:
    again = "the same end in every run" if row.runs_apart == 0 else f"another run ends {short(row.runs_apart, 2)} away"
    reversals = f"turns back {plural(round(row.reversals), 'time')}"
    return f"a path is {short(row.path_length, 2)} long and {reversals}\nfrom the same start, {again}"
