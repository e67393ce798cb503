"""The figure of ``step_degradation``: error and distance against the step count, with pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from stepfuse.analysis.experiments.degradation import PUBLISHED_STRIDED, Degradation
from stepfuse.analysis.experiments.sampling import sampler_title
from stepfuse.analysis.figures.pictures import drawable, height_of, show_images
from stepfuse.analysis.figures.style import FAINT, log_steps_axis, new_figure, plain_log_axis, sampler_colour, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@styled
def draw_degradation(result: Degradation) -> Figure:
    """Error and distance against the step count, and the first sample of each row.

    Examples:
        >>> from stepfuse.analysis import draw_degradation, save_figure, step_degradation
        >>> with sf.Engine.load("fashion") as engine:
        ...     found = step_degradation(engine, steps=[6, 3], samplers=["ddim"], samples=2)
        >>> save_figure(draw_degradation(found), "degradation.png")
    """
    samplers = list(dict.fromkeys(row.sampler for row in result.rows))
    counts = sorted({row.steps for row in result.rows}, reverse=True)
    judged = any(row.distance is not None for row in result.rows)
    pictures = drawable(result.images.shape[1:])
    curves = ["mse", "distance"] if judged else ["mse"]
    height = 3.6 + (0.75 + height_of(len(samplers), len(counts), result.images.shape, 6.1) if pictures else 0)
    figure = new_figure(9.0, height)
    layout: list[Any] = [curves, ["pictures"] * len(curves)] if pictures else [curves]
    axes = figure.subplot_mosaic(layout, height_ratios=[3.6, height - 3.6] if pictures else None)
    _draw_curve(axes["mse"], result, samplers, "mse")
    axes["mse"].set_title("how far from the full run")
    axes["mse"].set_ylabel("mean squared error")
    if result.unrelated_mse:
        label = "between full runs from\ndifferent starting noises"
        axes["mse"].axhline(result.unrelated_mse, linestyle=":", color=FAINT, zorder=1, label=label)
    if judged:
        _draw_curve(axes["distance"], result, samplers, "distance")
        axes["distance"].set_title("how far from real data")
        axes["distance"].set_ylabel("Fréchet distance")
        _draw_published(axes["distance"], result)
    lines = {str(line.get_label()): line for name in curves for line in axes[name].get_lines()}
    axes[curves[-1]].legend(lines.values(), lines.keys(), loc="upper left", bbox_to_anchor=(1.0, 1.0))
    for name in curves:
        axes[name].set_xlabel("steps")
        log_steps_axis(axes[name], counts)
        axes[name].set_xlim(1.09 * counts[0], counts[-1] / 1.09)
        axes[name].grid(visible=True, axis="y")
        axes[name].margins(y=0.12)
        plain_log_axis(axes[name].yaxis)
    if pictures:
        grid = np.full((len(samplers), len(counts), *result.images.shape[1:]), np.nan)
        for row, image in zip(result.rows, result.images, strict=True):
            grid[samplers.index(row.sampler), counts.index(row.steps)] = image
        show_images(
            axes["pictures"],
            grid,
            data_range=result.data_range,
            row_labels=[sampler_title(sampler) for sampler in samplers],
            column_labels=[str(count) for count in counts],
        )
        axes["pictures"].set_title("one sample, by sampler and steps", pad=18)
    return figure


def _draw_curve(axes: Axes, result: Degradation, samplers: Sequence[str], column: str) -> None:
    for sampler in samplers:
        points = [(row.steps, getattr(row, column)) for row in result.rows if row.sampler == sampler]
        above = [(steps, value) for steps, value in points if value]  # the full run's 0 has no logarithm
        if above:
            axes.plot(
                *zip(*above, strict=True), marker="o", color=sampler_colour(sampler), label=sampler_title(sampler)
            )
    axes.set_yscale("log")


def _draw_published(axes: Axes, result: Degradation) -> None:
    """The published collapse of naive striding, scaled to the distance of this model's full run."""
    naive = {row.steps: row.distance for row in result.rows if row.sampler == "ddpm_strided"}
    common = [steps for steps in PUBLISHED_STRIDED if naive.get(steps)]
    if len(common) < 2 or common[0] != max(PUBLISHED_STRIDED):  # it is scaled to the full run
        return
    scale = (naive[common[0]] or 0.0) / PUBLISHED_STRIDED[common[0]]
    values = [scale * PUBLISHED_STRIDED[steps] for steps in common]
    axes.plot(
        common, values, linestyle=(0, (4, 3)), color=sampler_colour("ddpm_strided"), alpha=0.6,
        label="naive striding, published\n(CIFAR-10 FID, scaled)",
    )  # fmt: skip
