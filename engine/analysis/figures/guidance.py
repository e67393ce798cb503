"""The figure of ``guidance_sweep``: distance, accuracy and over-saturation against the scale, with pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from stepfuse.analysis.experiments.guidance import PLAIN, GuidanceSweep
from stepfuse.analysis.experiments.sampling import sampler_title
from stepfuse.analysis.figures.pictures import drawable, show_images
from stepfuse.analysis.figures.style import FAINT, PALE, new_figure, sampler_colour, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@styled
def draw_guidance_sweep(result: GuidanceSweep) -> Figure:
    """Distance, accuracy and over-saturation against the scale, and the same samples at each scale."""
    pictures = drawable(result.images.shape[2:])
    panels = [name for name in ("distance", "accuracy") if getattr(result.rows[0], name) is not None]
    panels.append("beyond_range")
    shown = min(result.images.shape[1], 5)
    height = 3.2 + (0.5 + 9.2 * shown / len(result.rows) if pictures else 0)
    figure = new_figure(3.2 * max(len(panels), 3), height)
    layout: Any = [panels, ["pictures"] * len(panels)] if pictures else [panels]
    axes = figure.subplot_mosaic(layout, height_ratios=[3.2, height - 3.2] if pictures else None)
    for name in panels:
        _draw_curve(axes[name], result, name)
    if pictures:
        _draw_pictures(axes["pictures"], result, shown)
    row = result.rows[0]
    figure.suptitle(f"Guidance on {sampler_title(row.sampler, row.steps)}", x=0.01, ha="left")
    handles, names = axes[panels[0]].get_legend_handles_labels()
    if handles:
        figure.legend(handles, names, loc="outside upper right", ncols=len(names), handletextpad=0.2)
    return figure


_TITLES = {
    "distance": "Fréchet distance",
    "accuracy": "named as asked for",
    "beyond_range": "values out of range",
}


def _draw_curve(axes: Axes, result: GuidanceSweep, column: str) -> None:
    plain = [row for row in result.rows if row.variant == PLAIN]
    position = {row.guidance_scale: i for i, row in enumerate(plain)}
    colour = sampler_colour(plain[0].sampler)
    axes.plot(range(len(plain)), [getattr(row, column) for row in plain], "o-", color=colour)
    for marker, row in zip("D^sv", (row for row in result.rows if row.variant != PLAIN), strict=False):
        x, y = position.get(row.guidance_scale, len(plain)), getattr(row, column)
        axes.plot(
            [x], [y], marker, color=sampler_colour("ddpm_strided"), markersize=6, clip_on=False, label=row.variant
        )
    best = result.sweet_spot
    if best is not None:
        axes.axvline(position[best.guidance_scale], color=PALE, linewidth=6, zorder=0)
    if column == "distance":
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:g}"[0] in "25" else "")
        axes.tick_params(axis="y", which="minor", labelsize=8, length=0)
    else:
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
        axes.set_ylim(0, 1.05 if column == "accuracy" else None)
    if column == "accuracy" and result.real_accuracy is not None:
        axes.axhline(result.real_accuracy, color=FAINT, linewidth=1, linestyle=(0, (4, 3)))
        axes.text(len(plain) - 1, result.real_accuracy, "real images", va="top", ha="right", color=FAINT, fontsize=8)
    axes.set_xticks(range(len(plain)), [f"{row.guidance_scale:g}" for row in plain])
    axes.set_xlabel("guidance scale")
    axes.set_title(_TITLES[column])
    axes.grid(visible=True, axis="y")


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
