"""What guidance gives and costs: a sweep over its scale, from too little to far too much."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stepfuse.analysis.experiments.sampling import (
    KEPT_IMAGES,
    choose,
    class_labels,
    counted,
    cycled_classes,
    require_count,
)
from stepfuse.analysis.measures.frechet import FeatureFunction, Statistics
from stepfuse.analysis.measures.judge import Judge
from stepfuse.analysis.measures.scoring import distance_to_real, require_reference, share_named_right
from stepfuse.engine import Engine
from stepfuse.serving.in_flight import Images

SCALES = (0.0, 1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0)

#: Variants of strong guidance: by name, more arguments of ``Engine.sample``. The rescale is that of Lin et al. (2023),
#: the thresholds those of Saharia et al. (2022), section 2.3. A dynamic threshold moves values away from the bounds of
#: the data range, which is wrong for data that lies at them by nature, such as a black background.
VARIANTS: dict[str, dict[str, Any]] = {
    "rescale 0.7": {"guidance_rescale": 0.7},
    "static threshold": {"dynamic_threshold": (0.995, 1.0)},
    "dynamic threshold": {"dynamic_threshold": (0.995, 2.0)},
}
VARIANT_SCALE = 7.5

PLAIN = "plain"


@dataclass(frozen=True)
class GuidanceRow:
    """One guidance scale.

    Attributes:
        variant: ``plain``, or the name of a variant.
        guidance_scale: 0 is unconditional, 1 is conditional without guidance.
        sampler: Name of the sampler.
        steps: Its number of steps.
        passes: Network passes a sample, as the engine counted them.
        distance: Fréchet distance to the real data; None if the samples are not judged.
        accuracy: Share of the samples that the judge classifies as what they are conditioned on; None without a judge
            or without classes.
        beyond_range: Share of the values that lie beyond the data range by more than half a level of an 8-bit picture
            and are clipped in it: over-saturation.
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
    """Result of ``guidance_sweep``.

    Attributes:
        rows: Plain ones by scale, then the variants.
        samples: Samples of each row.
        seed: Seed of the first sample; sample i has ``seed + i`` in every row.
        real_accuracy: Share of real images that the judge classifies correctly; None without a judge.
        data_range: Least and greatest value of a sample.
        images: The first samples of each row, shape (rows, up to ``KEPT_IMAGES``, *shape).

    Examples:
        >>> from stepfuse.analysis import guidance_sweep
        >>> with sf.Engine.load("fashion") as engine:
        ...     found = guidance_sweep(engine, scales=(1.0, 3.0), steps=3, samples=2)
        >>> len(found.rows), found.sweet_spot  # None: nothing was judged
        (5, None)
    """

    rows: tuple[GuidanceRow, ...]
    samples: int
    seed: int
    real_accuracy: float | None
    data_range: tuple[float, float]
    images: Images = field(repr=False)

    @property
    def sweet_spot(self) -> GuidanceRow | None:
        """The plain row of least distance; None if the samples are not judged."""
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
    """Generates the same samples, by class and seed, at each guidance scale, and once for each variant.

    Args:
        engine: Generates the samples.
        scales: Guidance scales.
        sampler: Name of the sampler.
        steps: Its number of steps; None is the model's default.
        variants: More arguments of ``Engine.sample`` by name; None is ``VARIANTS``. For ``ddim``, those that clamp the
            clean sample get ``clipped_eps`` too: at strong guidance its noise estimate must agree with the clamped one.
        variant_scale: Guidance scale of the variants.
        samples: Samples of each row; more than there are features, where they are judged.
        cond: As in ``Engine.sample``; None cycles through the model's classes, if it names any.
        features: A judge, or any function from samples (n, *shape) to features (n, F); None leaves the distance out.
        reference: Moments of the real data's features, for a function.
        seed: Seed of the first sample; sample i has ``seed + i``.
        progress: Whether progress bars are shown.

    Raises:
        ValueError: If ``samples`` is below 1 or, where they are judged, not above the number of features; ``features``
            and ``reference`` are not given together; ``scales`` is empty or has a negative one; a scale other than 1 is
            to guide a model without conditioning; or ``Engine.sample`` refuses ``sampler``, ``steps``, a variant,
            ``cond`` or ``seed``.
        TypeError: If ``samples`` is not an integer, the sampler lacks an option of a variant, or ``cond`` or ``seed``
            is of a type that ``Engine.sample`` refuses.

    Examples:
        >>> from stepfuse.analysis import guidance_sweep
        >>> with sf.Engine.load("fashion") as engine:
        ...     found = guidance_sweep(engine, scales=(1.0, 3.0), steps=3, samples=2)
        >>> found.samples
        2
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
    cond = cycled_classes(info, samples) if cond is None else cond
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
        shown.append(images[:KEPT_IMAGES])
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
