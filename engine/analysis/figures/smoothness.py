"""The figure of ``interpolation_smoothness``: interpolations of each sampler, and the error from frame to frame."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from stepfuse.analysis.experiments.sampling import sampler_title
from stepfuse.analysis.experiments.smoothness import Smoothness
from stepfuse.analysis.experiments.wording import short
from stepfuse.analysis.figures.labels import legend_row
from stepfuse.analysis.figures.pictures import drawable, height_of, show_images
from stepfuse.analysis.figures.style import cond_suffix, new_figure, sampler_colour, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@styled
def draw_smoothness(result: Smoothness) -> Figure:
    """Two runs of each sampler's walk, and the error from frame to frame along it.

    Examples:
        >>> from stepfuse.analysis import draw_smoothness, interpolation_smoothness, save_figure
        >>> with sf.Engine.load("fashion") as engine:
        ...     found = interpolation_smoothness(engine, frames=3, runs=2, samplers=[("ddim", {"steps": 3})])
        >>> save_figure(draw_smoothness(found), "smoothness.png")
    """
    pictures = drawable(result.images.shape[3:])
    strips = height_of(2 * len(result.rows), result.frames, result.images.shape, 6.6) if pictures else 0.0
    height = 4.5 + strips
    figure = new_figure(9.0, height)
    if pictures:
        axes = figure.subplot_mosaic([["walks"], ["curve"]], height_ratios=[strips, 2.4])
        shown = np.concatenate([walks[:2] for walks in result.images])
        labels = [
            f"{sampler_title(row.sampler, row.steps)}\n{row.options}, run {run}"
            for row in result.rows
            for run in (1, 2)
        ]
        show_images(axes["walks"], shown, data_range=result.data_range, row_labels=labels)
        curve = axes["curve"]
    else:
        curve = figure.subplots()
    for row in result.rows:
        gaps = [
            (point.share, point.mse_to_next)
            for point in result.points
            if (point.sampler, point.options) == (row.sampler, row.options) and point.mse_to_next is not None
        ]
        title = sampler_title(row.sampler, row.steps, row.options)
        label = f"{title}: mean {short(row.neighbour_mse, 2)}, variance across runs {short(row.variance, 2)}"
        curve.plot(*zip(*gaps, strict=True), marker="o", color=sampler_colour(row.sampler), label=label)
    curve.set_ylim(bottom=0)
    curve.set_xlabel("share of the walk")
    curve.set_ylabel("MSE to the next frame")
    curve.grid(visible=True, axis="y")
    curve.set_title("from frame to frame")
    legend_row(curve, columns=1)
    cond = cond_suffix(result.cond)
    figure.suptitle(f"One walk between two noises ({result.path}){cond}, sampled again and again", x=0.01, ha="left")
    return figure
