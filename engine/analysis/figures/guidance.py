"""The figure of ``guidance_sweep``: distance, accuracy and over-saturation against the scale, with pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from stepfuse.analysis.experiments.guidance import PLAIN, GuidanceSweep
from stepfuse.analysis.experiments.sampling import sampler_title
from stepfuse.analysis.figures.labels import BACKGROUND, Label, legend_row, place_labels
from stepfuse.analysis.figures.pictures import drawable, height_of, show_images
from stepfuse.analysis.figures.style import FAINT, INK, PALE, new_figure, plain_log_axis, sampler_colour, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@styled
def draw_guidance_sweep(result: GuidanceSweep) -> Figure:
    """Distance, accuracy and over-saturation against the scale, and the same samples at each scale.

    Examples:
        >>> from stepfuse.analysis import draw_guidance_sweep, guidance_sweep, save_figure
        >>> with sf.Engine.load("fashion") as engine:
        ...     found = guidance_sweep(engine, scales=(1.0, 3.0), steps=3, samples=2)
        >>> save_figure(draw_guidance_sweep(found), "guidance.png")
    """
    pictures = drawable(result.images.shape[2:])
    panels = [name for name in ("distance", "accuracy") if getattr(result.rows[0], name) is not None]
    panels.append("beyond_range")
    shown = min(result.images.shape[1], 5)
    strips = height_of(shown, len(result.rows), result.images.shape, 9.6) if pictures else 0.0
    height = 4.0 + (1.2 + strips if pictures else 0.0)
    figure = new_figure(3.4 * max(len(panels), 3), height)
    layout: Any = [panels, ["pictures"] * len(panels)] if pictures else [panels]
    axes = figure.subplot_mosaic(layout, height_ratios=[2.7, strips] if pictures else None)
    for name in panels:
        _draw_curve(axes[name], result, name)
        if name == "accuracy" and result.real_accuracy is not None:
            axes[name].axhline(result.real_accuracy, color=FAINT, linewidth=1, linestyle=(0, (4, 3)))
    if pictures:
        _draw_pictures(axes["pictures"], result, shown)
    row = result.rows[0]
    figure.suptitle(f"Guidance on {sampler_title(row.sampler, row.steps)}", x=0.01, ha="left")
    legend_row(axes[panels[0]], beside=[axes[name] for name in panels[1:]])
    for name in panels:
        place_labels(axes[name], _labels(result, name), fontsize=8)
    return figure


_VARIANT = sampler_colour("ddpm_strided")
_APART = 0.3  # of the variants of one scale, which would hide one another
_TITLES = {
    "distance": "Fréchet distance",
    "accuracy": "named as asked for",
    "beyond_range": "values out of range",
}


def _draw_curve(axes: Axes, result: GuidanceSweep, column: str) -> None:
    plain = [row for row in result.rows if row.variant == PLAIN]
    variants = [row for row in result.rows if row.variant != PLAIN]
    position = {row.guidance_scale: float(i) for i, row in enumerate(plain)}
    colour = sampler_colour(plain[0].sampler)
    axes.plot(range(len(plain)), [getattr(row, column) for row in plain], "o-", color=colour)
    for i, (marker, row) in enumerate(zip("D^sv", variants, strict=False)):
        x = position.get(row.guidance_scale, float(len(plain))) + _APART * (i - (len(variants) - 1) / 2)
        label = f"{row.variant}, guidance {row.guidance_scale:g}"
        axes.plot(
            [x], [getattr(row, column)], marker, color=_VARIANT, markersize=6, clip_on=False, label=label,
        )  # fmt: skip
    if column == "distance":
        axes.set_yscale("log")
        plain_log_axis(axes.yaxis)
    else:
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
        axes.set_ylim(0, 1.09 if column == "accuracy" else 1.05 * max(0.01, *(row.beyond_range for row in result.rows)))
    axes.set_xticks(range(len(plain)), [f"{row.guidance_scale:g}" for row in plain])
    axes.set_xlabel("guidance scale")
    axes.set_title(_TITLES[column])
    axes.grid(visible=True, axis="y")
    if (best := result.sweet_spot) is not None:
        axes.axvline(position[best.guidance_scale], color=PALE, linewidth=6, zorder=BACKGROUND)


def _labels(result: GuidanceSweep, column: str) -> list[Label]:
    """The names of what is drawn beside the curve: the sweet spot's band, and the level of real images."""
    plain = [row for row in result.rows if row.variant == PLAIN]
    best, level = result.sweet_spot, result.real_accuracy
    if column == "distance" and best is not None and best.distance is not None:
        return [Label("sweet spot", [(plain.index(best), best.distance)], INK)]
    if column == "accuracy" and level is not None:
        return [Label("real images", [(x, level) for x in reversed(range(len(plain)))], INK)]
    return []


def _draw_pictures(axes: Axes, result: GuidanceSweep, shown: int) -> None:
    best = result.sweet_spot
    labels = []
    for row in result.rows:
        label = f"{row.guidance_scale:g}"
        if row.variant != PLAIN:
            label = f"{label},\n" + row.variant.replace(" ", "\n", 1)
        labels.append(f"{label}\nsweet spot" if row is best else label)
    grid = np.moveaxis(result.images[:, :shown], 0, 1)
    show_images(axes, grid, data_range=result.data_range, column_labels=labels)
    axes.tick_params(axis="x", labelsize=8)
