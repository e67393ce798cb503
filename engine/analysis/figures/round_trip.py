"""The figure of ``round_trip``: the error against the step count, and images, their noise and the returned ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from stepfuse.analysis.experiments.round_trip import RoundTrip
from stepfuse.analysis.experiments.wording import plural
from stepfuse.analysis.figures.labels import legend_row
from stepfuse.analysis.figures.pictures import drawable, height_of, show_images
from stepfuse.analysis.figures.style import log_steps_axis, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NOISE_RANGE = (-3.0, 3.0)  # of what is shown of noise: three standard deviations either way
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")  # by refinements


@styled
def draw_round_trip(result: RoundTrip) -> Figure:
    """The error against the step count by refinements, and images, their noise and the returned images.

    Examples:
        >>> from stepfuse.analysis import draw_round_trip, round_trip, save_figure
        >>> with sf.Engine.load("fashion") as engine:
        ...     images = engine.sample(2, steps=4, seed=0)
        ...     found = round_trip(engine, images, steps=[2, 4], refinements=[0])
        >>> save_figure(draw_round_trip(found), "round-trip.png")
    """
    rounds = sorted({row.refinements for row in result.rows})
    most = max(row.steps for row in result.rows)
    pictures = drawable(result.images.shape[1:])
    strips = 0.6 + height_of(4, len(result.images), result.images.shape, 7.3) if pictures else 0.0
    figure = new_figure(9.0, 3.6 + strips)
    if pictures:
        axes = figure.subplot_mosaic([["curve"], ["pictures"]], height_ratios=[3.6, strips])
        low, high = result.data_range
        noise = low + (high - low) * (result.noise - NOISE_RANGE[0]) / (NOISE_RANGE[1] - NOISE_RANGE[0])
        ends = (f"back, {plural(n, 'refinement')}" for n in (rounds[0], rounds[-1]))
        show_images(
            axes["pictures"],
            np.stack([result.images, noise, *result.returned]),
            data_range=result.data_range,
            row_labels=["image", "its noise", *ends],
        )
        axes["pictures"].set_title(f"DDIM {most} steps each way")
        curve = axes["curve"]
    else:
        curve = figure.subplots()
    for index, n in enumerate(rounds):
        points = [(row.steps, row.mse) for row in result.rows if row.refinements == n]
        label = f"{plural(n, 'refinement')} a step"
        curve.plot(*zip(*points, strict=True), marker="o", color=_COLOURS[index % len(_COLOURS)], label=label)
    counts = sorted({row.steps for row in result.rows})
    curve.set_yscale("log")
    log_steps_axis(curve, counts)
    curve.set_xlabel("DDIM steps each way")
    curve.set_ylabel("mean squared error")
    curve.grid(visible=True, axis="y")
    conditioning = "conditioned on their class" if result.conditioned else "unconditional"
    guidance = f"guidance {result.guidance_scale:g}"
    curve.set_title(f"encode, then sample: {plural(result.images_encoded, 'image')}, {conditioning}, {guidance}")
    legend_row(curve)
    return figure
