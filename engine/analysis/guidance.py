"""What guidance gives and what it costs: a sweep over its scale, from too little to far too much."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from stepfuse.analysis.figures import (
    FAINT,
    PALE,
    drawable,
    new_figure,
    sampler_colour,
    sampler_title,
    show_images,
    styled,
)
from stepfuse.analysis.frechet import FeatureFunction, Statistics
from stepfuse.analysis.judge import Judge
from stepfuse.analysis.sampling import choose, class_labels, counted, in_turn, require_count
from stepfuse.analysis.scoring import distance_to_real, require_reference, share_named_right
from stepfuse.engine import Engine
from stepfuse.serving.in_flight import Images

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SCALES = (0.0, 1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0)

#: Ways to guide strongly: by name, more arguments of ``Engine.sample``. The rescale is that of Lin et al. (2023), the
#: thresholds those of Saharia et al. (2022), section 2.3. A dynamic one draws values in from the bounds of the range,
#: which is wrong for data that lies at them by nature, such as a black background.
VARIANTS: dict[str, dict[str, Any]] = {
    "rescale 0.7": {"guidance_rescale": 0.7},
    "static threshold": {"dynamic_threshold": (0.995, 1.0)},
    "dynamic threshold": {"dynamic_threshold": (0.995, 2.0)},
}
VARIANT_SCALE = 7.5

SHOWN = 10  # samples a row that are kept as pictures

PLAIN = "plain"


@dataclass(frozen=True)
class GuidanceRow:
    """One guidance scale.

    Attributes:
        variant: ``plain``, or the name of what else was changed.
        guidance_scale: 0 leaves out what the samples are told, 1 is no guidance.
        sampler: Name of the sampler.
        steps: Its number of steps.
        passes: Network passes a sample, as the engine counted them.
        distance: Fréchet distance to the real data; None if nothing judges the samples.
        accuracy: Share of the samples that the judge names as asked for; None if none does.
        beyond_range: Share of the values that lie beyond the data range by more than half a level of an 8-bit picture,
            which clips them: over-saturation.
        mean_magnitude: Mean distance of the values from the middle of the data range, as a share of half the range.
    """

    variant: str
    guidance_scale: float
    sampler: str
    steps: int
    passes: float
    distance: float | None
    accuracy: float | None
    beyond_range: float
    mean_magnitude: float


@dataclass(frozen=True, eq=False)
class GuidanceSweep:
    """What ``guidance_sweep`` found.

    Attributes:
        rows: Plain ones by scale, then the variants.
        samples: Samples of each row.
        seed: Of the first sample; sample i has seed + i in every row.
        real_accuracy: Share of real images that the judge names right; None without one.
        data_range: Least and greatest value of a sample.
        images: The first samples of each row, shape (rows, up to ``SHOWN``, *shape).
    """

    rows: tuple[GuidanceRow, ...]
    samples: int
    seed: int
    real_accuracy: float | None
    data_range: tuple[float, float]
    images: Images = field(repr=False)

    @property
    def sweet_spot(self) -> GuidanceRow | None:
        """The plain row of least distance; None if nothing judges the samples."""
        judged = [row for row in self.rows if row.variant == PLAIN and row.distance is not None]
        return min(judged, key=lambda row: row.distance or 0.0, default=None)


def guidance_sweep(
    engine: Engine,
    *,
    scales: Sequence[float] = SCALES,
    sampler: str = "ddim",
    steps: int | None = None,
    variants: Mapping[str, Mapping[str, Any]] | None = None,
    variant_scale: float = VARIANT_SCALE,
    samples: int = 200,
    cond: Any = None,
    features: Judge | FeatureFunction | None = None,
    reference: Statistics | None = None,
    seed: int = 0,
    progress: bool = False,
) -> GuidanceSweep:
    """Draws the same samples, by class and seed, at each guidance scale, and once for each variant.

    Args:
        engine: Draws.
        scales: Guidance scales.
        sampler: Name of the sampler.
        steps: Its number of steps; None is the model's default.
        variants: More arguments of ``Engine.sample`` by name; None is ``VARIANTS``. For ``ddim``, those that clamp the
            clean sample get ``clipped_eps`` too: at strong guidance its noise estimate must agree with the clamped one.
        variant_scale: Guidance scale of the variants.
        samples: Samples of each row; more than there are features, where something judges them.
        cond: As in ``Engine.sample``; None is all classes in turn, if the model has classes.
        features: A judge, or any function from samples (n, *shape) to features (n, F); None leaves the distance out.
        reference: Moments of the real data's features, for a function.
        seed: Of the first sample.
        progress: Whether bars are shown.

    Raises:
        ValueError: If a bound is broken, such as guidance for a model that takes no conditioning; the message carries
            the value received.
        TypeError: If an argument is of the wrong kind.
    """
    require_count("samples", samples, 1)
    require_reference(features, reference)
    if not scales:
        raise ValueError("scales must be at least one, got none")
    if variants is None:
        variants = _default_variants(sampler)
    options = [(PLAIN, {"guidance_scale": float(scale)}) for scale in scales]
    options += [(name, {"guidance_scale": float(variant_scale), **more}) for name, more in variants.items()]
    choices = choose(engine, [(sampler, {"steps": steps, **one}) for _, one in options])
    info = engine.info
    cond = in_turn(info, samples) if cond is None else cond
    labels = class_labels(info, cond, samples)
    rows, shown = [], []
    for (variant, one), choice in zip(options, choices, strict=True):
        with counted(engine) as passes:
            images = engine.sample(samples, cond=cond, table=choice.table, seed=seed, progress=progress)
        beyond, magnitude = saturation(images, info.data_range)
        rows.append(
            GuidanceRow(
                variant=variant,
                guidance_scale=one["guidance_scale"],
                sampler=sampler,
                steps=choice.steps,
                passes=passes.count / samples,
                distance=distance_to_real(images, features, reference),
                accuracy=share_named_right(images, features, labels),
                beyond_range=beyond,
                mean_magnitude=magnitude,
            )
        )
        shown.append(images[:SHOWN])
    real = features.real_accuracy if isinstance(features, Judge) else None
    return GuidanceSweep(tuple(rows), samples, seed, real, info.data_range, np.stack(shown))


def saturation(images: Images, data_range: tuple[float, float]) -> tuple[float, float]:
    """Share of the values beyond the data range, and their mean magnitude; see ``GuidanceRow``."""
    low, high = data_range
    half = (high - low) / 2
    magnitude = np.abs(np.asarray(images, dtype=np.float64) - (low + high) / 2) / half
    return float((magnitude > 1 + 1 / 255).mean()), float(magnitude.mean())


def _default_variants(sampler: str) -> dict[str, dict[str, Any]]:
    clamped = {"clipped_eps": True} if sampler == "ddim" else {}
    return {name: {**one, **(clamped if "dynamic_threshold" in one else {})} for name, one in VARIANTS.items()}


@styled
def draw_guidance_sweep(result: GuidanceSweep) -> Figure:
    """Distance, accuracy and over-saturation against the scale, and what the same samples look like at each."""
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


_SHADES = ("#e69f00", "#009e73", "#d55e00", "#cc79a7")
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
