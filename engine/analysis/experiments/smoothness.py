"""Smoothness of interpolation: samples along a walk between two noises, smooth only without step noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stepfuse.analysis.experiments.sampling import SamplerChoice, choose, cond_text, cycled_classes, require_count
from stepfuse.analysis.measures.differences import mse, variance
from stepfuse.engine import Engine
from stepfuse.requests.interpolation import Path, interpolate_noise
from stepfuse.requests.sampler_defaults import default_steps
from stepfuse.samplers.noise import normal
from stepfuse.serving.in_flight import Images


@dataclass(frozen=True)
class SmoothnessRow:
    """One sampler's walks.

    Attributes:
        sampler: Name of the sampler.
        options: Its options as text.
        steps: Its number of steps.
        neighbour_mse: Mean squared error between neighbouring frames, averaged over walk and runs.
        neighbour_mse_max: The largest of them.
        variance: Variance across runs, averaged over pixels and points; 0 if every run is the same bits.
    """

    sampler: str
    options: str
    steps: int
    neighbour_mse: float
    neighbour_mse_max: float
    variance: float


@dataclass(frozen=True)
class SmoothnessPoint:
    """One point of one sampler's walks.

    Attributes:
        sampler: Name of the sampler.
        options: Its options as text.
        share: How far along the walk, 0 to 1.
        variance: Variance across runs at this point, averaged over the pixels.
        mse_to_next: Mean squared error to the next frame, averaged over runs; None at the end.
    """

    sampler: str
    options: str
    share: float
    variance: float
    mse_to_next: float | None


@dataclass(frozen=True, eq=False)
class Smoothness:
    """Result of ``interpolation_smoothness``.

    Attributes:
        rows: One for each sampler.
        points: Every point of every sampler's walk.
        frames, runs, path: The arguments.
        seed: Seed of the first end's noise; the other end has the next one.
        cond: The samples' conditioning as text; empty if they are unconditional.
        data_range: Least and greatest value of a sample.
        images: The walks, shape (samplers, runs, frames, *shape).

    Examples:
        >>> from stepfuse.analysis import interpolation_smoothness
        >>> with sf.Engine.load("fashion") as engine:
        ...     found = interpolation_smoothness(engine, frames=3, runs=2, samplers=[("ddim", {"steps": 3})])
        >>> found.rows[0].sampler
        'ddim'
    """

    rows: tuple[SmoothnessRow, ...]
    points: tuple[SmoothnessPoint, ...]
    frames: int
    runs: int
    path: str
    seed: int
    cond: str
    data_range: tuple[float, float]
    images: Images = field(repr=False)


def interpolation_smoothness(
    engine: Engine,
    *,
    frames: int = 10,
    runs: int = 4,
    cond: Any = None,
    seed: int = 0,
    path: Path = "slerp",
    samplers: Sequence[SamplerChoice] | None = None,
    progress: bool = False,
) -> Smoothness:
    """Samples along a walk between two noises, several times; every frame has a seed of its own for the step noise.

    Args:
        engine: Generates the samples. Concurrent requests may change the last bits.
        frames: Points of the walk, both ends included, at least 2.
        runs: Walks, at least 2.
        cond: Conditioning of all samples; None is the model's first class, if it names any.
        seed: Seed of the first end's noise; the other end has the next one.
        path: ``slerp`` or ``lerp``.
        samplers: Names, with more arguments of ``Engine.sample``. By default, at the model's default number of steps:
            DDIM with eta 0 and respaced DDPM with the posterior's variance, the less noisy one.
        progress: Whether progress bars are shown.

    Raises:
        ValueError: If ``frames`` or ``runs`` is below 2, ``path`` is neither of both, ``samplers`` is empty, or
            ``Engine.sample`` refuses a sampler, one of its options, ``cond`` or ``seed``.
        TypeError: If ``frames`` or ``runs`` is not an integer, a sampler has no option of a given name, or ``cond`` is
            of a type that ``Engine.sample`` refuses.

    Examples:
        >>> from stepfuse.analysis import interpolation_smoothness
        >>> with sf.Engine.load("fashion") as engine:
        ...     found = interpolation_smoothness(engine, frames=3, runs=2, samplers=[("ddim", {"steps": 3})])
        >>> found.frames, found.runs
        (3, 2)
    """
    require_count("frames", frames, 2)
    require_count("runs", runs, 2)
    info = engine.info
    if cond is None and (first := cycled_classes(info, 1)):
        cond = first[0]
    walk = interpolate_noise(normal(seed, info.shape), normal(seed + 1, info.shape), frames, path)
    if samplers is None:
        steps = default_steps(info, "ddim")
        samplers = [("ddim", {"steps": steps, "eta": 0.0}), ("ddpm", {"steps": steps, "variance": "posterior"})]
    rows, points, images = [], [], []
    for choice in choose(engine, samplers):
        walks = np.stack(
            [
                engine.sample(
                    frames, noise=walk, cond=cond, table=choice.table, seed=seed + 2 + run * frames, progress=progress
                )
                for run in range(runs)
            ]
        )
        between = [float(np.mean([mse(one[i], one[i + 1]) for one in walks])) for i in range(frames - 1)]
        across = [variance(walks[:, i]) for i in range(frames)]
        rows.append(
            SmoothnessRow(
                sampler=choice.sampler,
                options=choice.options,
                steps=choice.steps,
                neighbour_mse=float(np.mean(between)),
                neighbour_mse_max=max(mse(one[i], one[i + 1]) for one in walks for i in range(frames - 1)),
                variance=float(np.mean(across)),
            )
        )
        points += [
            SmoothnessPoint(choice.sampler, choice.options, i / (frames - 1), spread, gap)
            for i, (spread, gap) in enumerate(zip(across, [*between, None], strict=True))
        ]
        images.append(walks)
    return Smoothness(
        tuple(rows), tuple(points), frames, runs, path, seed, cond_text(info, cond), info.data_range, np.stack(images)
    )
