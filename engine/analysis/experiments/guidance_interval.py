"""Guidance in an interval of noise levels: what it saves, and what it does to the samples."""

from __future__ import annotations

import time
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

INTERVAL = (0.2, 0.8)
EVERYWHERE = (0.0, 1.0)


@dataclass(frozen=True)
class IntervalRow:
    """Guidance in one interval.

    Attributes:
        interval: Noise levels with guidance: 0 is a clean sample, 1 pure noise; (0, 1) is everywhere.
        guided_steps: Steps that are guided.
        passes: Network passes a sample, as the engine counted them.
        seconds: For all samples at once, the least of the repeats, since other load on the machine only adds to it.
        distance: Fréchet distance to the real data; None if the samples are not judged.
        accuracy: Share of the samples that the judge classifies as what they are conditioned on; None without a judge
            or without classes.
    """

    interval: tuple[float, float]
    guided_steps: int
    passes: float
    seconds: float
    distance: float | None
    accuracy: float | None


@dataclass(frozen=True, eq=False)
class IntervalSaving:
    """Result of ``interval_saving``.

    Attributes:
        rows: Guided everywhere, then in the interval.
        sampler: Name of the sampler.
        steps: Its number of steps.
        guidance_scale: The scale inside of the interval.
        samples: Samples of each row.
        repeats: Runs of each row that were timed, alternating between the rows.
        seed: Seed of the first sample; sample i has ``seed + i``.
        data_range: Least and greatest value of a sample.
        images: The first samples of each row, shape (rows, up to ``KEPT_IMAGES``, *shape).

    Examples:
        >>> from stepfuse.analysis import interval_saving
        >>> with sf.Engine.load("fashion") as engine:
        ...     found = interval_saving(engine, (0.2, 0.8), steps=5, samples=2, repeats=1)
        >>> 0 < found.passes_saved < 1, found.seconds_saved < 1
        (True, True)
    """

    rows: tuple[IntervalRow, ...]
    sampler: str
    steps: int
    guidance_scale: float
    samples: int
    repeats: int
    seed: int
    data_range: tuple[float, float]
    images: Images = field(repr=False)

    @property
    def passes_saved(self) -> float:
        """Share of the network passes that the interval saves."""
        everywhere, inside = self.rows
        return 1 - inside.passes / everywhere.passes

    @property
    def seconds_saved(self) -> float:
        """Share of the time that the interval saves."""
        everywhere, inside = self.rows
        return 1 - inside.seconds / everywhere.seconds


def interval_saving(
    engine: Engine,
    interval: tuple[float, float] = INTERVAL,
    *,
    guidance_scale: float | None = None,
    sampler: str = "ddim",
    steps: int | None = None,
    samples: int = 200,
    repeats: int = 3,
    cond: Any = None,
    features: Judge | FeatureFunction | None = None,
    reference: Statistics | None = None,
    seed: int = 0,
    progress: bool = False,
) -> IntervalSaving:
    """Generates the same samples guided everywhere and guided in an interval (Kynkäänniemi et al., 2024).

    Outside of the interval a step is one network pass instead of two. The timed runs alternate between both.

    Args:
        engine: Generates the samples.
        interval: As ``guidance_interval`` of ``stepfuse.samplers.ddim``.
        guidance_scale: The scale inside of the interval; None is the model's default.
        sampler: Name of the sampler.
        steps: Its number of steps; None is the model's default.
        samples: Samples of each row; more than there are features, where they are judged.
        repeats: Runs of each row that are timed.
        cond: As in ``Engine.sample``; None cycles through the model's classes, if it names any.
        features: A judge, or any function from samples (n, *shape) to features (n, F); None leaves the distance out.
        reference: Moments of the real data's features, for a function.
        seed: Seed of the first sample; sample i has ``seed + i``.
        progress: Whether progress bars are shown.

    Raises:
        ValueError: If ``interval`` is empty or not within 0 to 1; the guidance scale is 0 or 1, which are one pass a
            step anyway; ``samples`` or ``repeats`` is below 1; there are no more samples than features where they are
            judged; ``features`` and ``reference`` are not given together; ``cond`` is None and the model names no
            classes; or ``Engine.sample`` refuses ``sampler``, ``steps``, ``cond`` or ``seed``.
        TypeError: If ``samples`` or ``repeats`` is not an integer, or another argument is of a type that
            ``Engine.sample`` refuses.

    Examples:
        >>> from stepfuse.analysis import interval_saving
        >>> with sf.Engine.load("fashion") as engine:
        ...     found = interval_saving(engine, (0.2, 0.8), steps=5, samples=2, repeats=1)
        >>> found.steps
        5
    """
    require_count("samples", samples, 1)
    require_count("repeats", repeats, 1)
    require_reference(features, reference)
    common = {"steps": steps, "guidance_scale": guidance_scale}
    intervals = EVERYWHERE, (float(interval[0]), float(interval[1]))
    choices = choose(engine, [(sampler, {**common, "guidance_interval": one}) for one in intervals])
    scale = float(choices[0].table.options["guidance_scale"])
    if scale in (0.0, 1.0):
        raise ValueError(f"guidance_scale must be neither 0 nor 1, which are one pass a step anyway, got {scale:g}")
    info = engine.info
    cond = cycled_classes(info, samples) if cond is None else cond
    if cond is None:
        raise ValueError("cond must be given for a model that does not name its classes, got None")
    labels = class_labels(info, cond, samples)
    seconds: list[list[float]] = [[] for _ in choices]
    passes, images = [0.0, 0.0], [np.empty(0, np.float32)] * 2
    engine.warmup([rows for rows in (1, 2) if rows <= engine.serving.row_limit])
    for _ in range(repeats):
        for index, choice in enumerate(choices):
            began = time.perf_counter()
            with counted(engine) as count:
                images[index] = engine.sample(samples, cond=cond, table=choice.table, seed=seed, progress=progress)
            seconds[index].append(time.perf_counter() - began)
            passes[index] = count.count / samples
    rows = tuple(
        IntervalRow(
            interval=intervals[index],
            guided_steps=int((choice.table["g"] == np.float32(scale)).sum()),
            passes=passes[index],
            seconds=min(seconds[index]),
            distance=distance_to_real(images[index], features, reference),
            accuracy=share_named_right(images[index], features, labels),
        )
        for index, choice in enumerate(choices)
    )
    shown = np.stack([row_images[:KEPT_IMAGES] for row_images in images])
    return IntervalSaving(rows, sampler, choices[0].steps, scale, samples, repeats, seed, info.data_range, shown)
