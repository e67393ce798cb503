"""Reproducibility: many runs of each sampler from one starting noise, and how much they differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from stepfuse.analysis.experiments.sampling import (
    Choice,
    SamplerChoice,
    choose,
    cond_text,
    cycled_classes,
    require_count,
)
from stepfuse.analysis.measures.differences import identical, pairwise_mse, variance
from stepfuse.engine import Engine
from stepfuse.requests.sampler_defaults import default_steps
from stepfuse.samplers.noise import normal
from stepfuse.serving.in_flight import Images


@dataclass(frozen=True)
class ReproducibilityRow:
    """How much the runs of one sampler differ.

    Attributes:
        sampler: Name of the sampler.
        options: Its options as text.
        steps: Its number of steps.
        seeds: Whether the runs' step noise has different seeds or the same one.
        variance: Unbiased variance across runs, averaged over the pixels.
        pairwise_mse_mean: Mean squared error between two runs, averaged over all pairs: twice the variance.
        pairwise_mse_std: Its standard deviation over the pairs.
        bit_identical: Whether all runs returned the same bits.
    """

    sampler: str
    options: str
    steps: int
    seeds: Literal["different", "same"]
    variance: float
    pairwise_mse_mean: float
    pairwise_mse_std: float
    bit_identical: bool


@dataclass(frozen=True, eq=False)
class Reproducibility:
    """Result of ``reproducibility``.

    Attributes:
        rows: Two for each sampler: different seeds, the same seed.
        runs: Number of runs R of each row.
        seed: Seed of the starting noise.
        cond: The samples' conditioning as text; empty if they are unconditional.
        data_range: Least and greatest value of a sample.
        images: Shape (rows, R, *shape).

    Examples:
        >>> from stepfuse.analysis import reproducibility
        >>> with sf.Engine.load("fashion") as engine:
        ...     found = reproducibility(engine, runs=2, samplers=[("ddim", {"steps": 3})])
        >>> found.runs, found.seed
        (2, 0)
    """

    rows: tuple[ReproducibilityRow, ...]
    runs: int
    seed: int
    cond: str
    data_range: tuple[float, float]
    images: Images = field(repr=False)


def reproducibility(
    engine: Engine,
    *,
    runs: int = 8,
    cond: Any = None,
    seed: int = 0,
    samplers: Sequence[SamplerChoice] | None = None,
    progress: bool = False,
) -> Reproducibility:
    """Samples repeatedly from one starting noise, each time in a call of its own.

    Each sampler runs once with different seeds for the step noise, as a stochastic sampler is used, and once with the
    same seed every time. A deterministic sampler has no step noise, so the seed must not matter.

    Args:
        engine: Generates the samples. Concurrent requests may change the last bits, since a network library may compute
            each number of rows in another way.
        runs: Number of runs R, at least 2.
        cond: The samples' conditioning; None is the model's first class, if it names any.
        seed: Seed of the starting noise.
        samplers: Names, with more arguments of ``Engine.sample``. By default, at the model's default number of steps:
            DDIM with eta 0 and with eta 1, and respaced DDPM.
        progress: Whether progress bars are shown.

    Raises:
        ValueError: If ``runs`` is below 2, ``samplers`` is empty, or ``Engine.sample`` refuses a sampler, one of its
            options, ``cond`` or ``seed``.
        TypeError: If ``runs`` is not an integer, a sampler has no option of a given name, or ``cond`` or ``seed`` is of
            a type that ``Engine.sample`` refuses.

    Examples:
        >>> from stepfuse.analysis import reproducibility
        >>> with sf.Engine.load("fashion") as engine:
        ...     found = reproducibility(engine, runs=2, samplers=[("ddim", {"steps": 3})])
        >>> [row.sampler for row in found.rows]
        ['ddim', 'ddim']
    """
    require_count("runs", runs, 2)
    info = engine.info
    cond = cycled_classes(info, 1) if cond is None else cond
    noise = normal(seed, (1, *info.shape))
    rows, images = [], []
    for choice in choose(engine, _default_samplers(engine) if samplers is None else samplers):
        # Starting noise is stream 0 of its seed and step noise stream 1, so they are independent at the same seed.
        seeds_of: dict[Literal["different", "same"], Sequence[int]]
        seeds_of = {"different": range(seed, seed + runs), "same": [seed] * runs}
        for seeds, run_seeds in seeds_of.items():
            samples = [
                engine.sample(
                    1, noise=noise, cond=cond, table=choice.table, seed=run_seed % (1 << 64), progress=progress
                )
                for run_seed in run_seeds
            ]
            images.append(np.concatenate(samples))
            rows.append(_row(choice, seeds, images[-1]))
    return Reproducibility(tuple(rows), runs, seed, cond_text(info, cond), info.data_range, np.stack(images))


def _default_samplers(engine: Engine) -> list[SamplerChoice]:
    steps = default_steps(engine.info, "ddim")
    return [("ddim", {"steps": steps, "eta": 0.0}), ("ddim", {"steps": steps, "eta": 1.0}), ("ddpm", {"steps": steps})]


def _row(choice: Choice, seeds: Literal["different", "same"], runs: Images) -> ReproducibilityRow:
    errors = pairwise_mse(runs)
    return ReproducibilityRow(
        sampler=choice.sampler,
        options=choice.options,
        steps=choice.steps,
        seeds=seeds,
        variance=variance(runs),
        pairwise_mse_mean=float(errors.mean()),
        pairwise_mse_std=float(errors.std()),
        bit_identical=identical(runs),
    )
