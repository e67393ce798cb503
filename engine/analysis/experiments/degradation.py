"""What fewer steps cost: each sampler at falling step counts, compared with its full run and with real data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stepfuse.analysis.experiments.sampling import (
    Choice,
    choose,
    class_labels,
    counted,
    cycled_classes,
    require_count,
    sampler_title,
)
from stepfuse.analysis.measures.differences import mse
from stepfuse.analysis.measures.frechet import FeatureFunction, Statistics
from stepfuse.analysis.measures.judge import Judge
from stepfuse.analysis.measures.scoring import (
    distance_to_real,
    require_more_than_features,
    require_reference,
    share_named_right,
)
from stepfuse.engine import Engine
from stepfuse.samplers.table import StepTable
from stepfuse.serving.in_flight import Images

STEPS = (1000, 500, 250, 100, 50, 25)
SAMPLERS = ("ddpm_strided", "ddpm", "ddim", "dpmpp_2m")

#: A solver of high order gains nothing beyond so many steps, and cannot take all of T.
MOST_STEPS = {"dpmpp_2m": 250}

#: FID of naive striding by steps, CIFAR-10, as stepfuse's specification gives it: another network, data and feature
#: space, so only its shape compares.
PUBLISHED_STRIDED = {1000: 3.17, 500: 4.85, 250: 8.42, 100: 18.73, 50: 45.62, 25: 89.31}


@dataclass(frozen=True)
class DegradationRow:
    """One sampler at one step count.

    Attributes:
        sampler: Name of the sampler.
        steps: Its number of steps.
        passes: Network passes a sample, as the engine counted them.
        mse: Mean squared error to ``compared_with``, from the same starting noise and the same seeds.
        compared_with: The full run: DDIM's longest for deterministic samplers, which all solve one ODE; DDPM's for the
            naive one, which is DDPM if it takes all steps; the sampler's own for the others. Samplers with step noise
            have another noise at another step count, so their runs differ nearly as unrelated samples do:
            ``Degradation.unrelated_mse``.
        distance: Fréchet distance to the real data; None if the samples are not judged.
        accuracy: Share of the samples that the judge classifies as what they are conditioned on; None without a judge
            or without classes.
    """

    sampler: str
    steps: int
    passes: float
    mse: float
    compared_with: str
    distance: float | None
    accuracy: float | None


@dataclass(frozen=True, eq=False)
class Degradation:
    """Result of ``step_degradation``.

    Attributes:
        rows: Sampler by sampler, the longest run first.
        samples: Samples of each row.
        guidance_scale: The guidance scale of all rows.
        seed: Seed of the first sample; sample i has ``seed + i``.
        unrelated_mse: Mean squared error between full runs from different starting noises, of the same class where
            samples cycle through the classes; None with too few samples.
        data_range: Least and greatest value of a sample.
        images: The first sample of each row, shape (rows, *shape).

    Examples:
        >>> from stepfuse.analysis import step_degradation
        >>> with sf.Engine.load("fashion") as engine:
        ...     found = step_degradation(engine, steps=[6, 3], samplers=["ddim"], samples=2)
        >>> found.samples, found.seed
        (2, 0)
    """

    rows: tuple[DegradationRow, ...]
    samples: int
    guidance_scale: float
    seed: int
    unrelated_mse: float | None
    data_range: tuple[float, float]
    images: Images = field(repr=False)


def step_degradation(
    engine: Engine,
    *,
    steps: Sequence[int] | None = None,
    samplers: Sequence[str] = SAMPLERS,
    samples: int = 128,
    cond: Any = None,
    features: Judge | FeatureFunction | None = None,
    reference: Statistics | None = None,
    guidance_scale: float = 1.0,
    seed: int = 0,
    progress: bool = False,
) -> Degradation:
    """Generates the same samples, by starting noise and class, at falling step counts.

    Args:
        engine: Generates the samples.
        steps: Step counts, the largest first; None is 1000, 500, 250, 100, 50 and 25 as far as the model's T goes.
            A sampler in ``MOST_STEPS`` runs at those up to its limit.
        samplers: Names of samplers, each with its default options.
        samples: Samples of each; more than there are features, where they are judged.
        cond: As in ``Engine.sample``; None cycles through the model's classes, if it names any.
        features: A judge, or any function from samples (n, *shape) to features (n, F); None leaves the distance out.
        reference: Moments of the real data's features, for a function.
        guidance_scale: 1 is no guidance.
        seed: Seed of the first sample; sample i has ``seed + i``.
        progress: Whether progress bars are shown.

    Raises:
        ValueError: If ``samples`` is below 1 or, where they are judged, not above the number of features; ``features``
            and ``reference`` are not given together; ``steps`` is empty or not falling; ``samplers`` is empty; or
            ``Engine.sample`` refuses a sampler, a step count, ``guidance_scale``, ``cond`` or ``seed``.
        TypeError: If ``samples`` is not an integer, or another argument is of a type that ``Engine.sample`` refuses.

    Examples:
        >>> from stepfuse.analysis import step_degradation
        >>> with sf.Engine.load("fashion") as engine:
        ...     found = step_degradation(engine, steps=[6, 3], samplers=["ddim"], samples=2)
        >>> [(row.sampler, row.steps) for row in found.rows]
        [('ddim', 6), ('ddim', 3)]
    """
    require_count("samples", samples, 1)
    require_reference(features, reference)
    require_more_than_features(samples, features, reference)
    info = engine.info
    if steps is None:
        steps = [count for count in STEPS if count <= info.schedule.num_train_timesteps]
    if not steps or list(steps) != sorted(set(steps), reverse=True):
        raise ValueError(f"steps must be at least one count, the largest first, got {tuple(steps)}")
    choices = choose(
        engine,
        [
            (sampler, {"steps": count, "guidance_scale": guidance_scale})
            for sampler in samplers
            for count in steps
            if count <= MOST_STEPS.get(sampler, count)
        ],
    )
    cycle = cycled_classes(info, samples) if cond is None else None
    cond = cond if cycle is None else cycle
    generated: dict[StepTable, tuple[Images, float]] = {}

    def generate(table: StepTable) -> tuple[Images, float]:
        if table not in generated:  # the naive sampler of all steps is DDPM itself
            with counted(engine) as passes:
                images = engine.sample(samples, cond=cond, table=table, seed=seed, progress=progress)
            generated[table] = images, passes.count / samples
        return generated[table]

    labels = class_labels(info, cond, samples)
    rows, shown = [], []
    for choice in choices:
        images, passes = generate(choice.table)
        full = _full_run(choices, choice)
        rows.append(
            DegradationRow(
                sampler=choice.sampler,
                steps=choice.steps,
                passes=passes,
                mse=mse(images, generate(full.table)[0]),
                compared_with=sampler_title(full.sampler, full.steps),
                distance=distance_to_real(images, features, reference),
                accuracy=share_named_right(images, features, labels),
            )
        )
        shown.append(images[0])
    full_images = generate(_full_run(choices, choices[0]).table)[0]
    apart = len(set(cycle)) if cycle else 1  # to the next sample of the same class
    unrelated = mse(full_images[apart:], full_images[:-apart]) if samples > apart else None
    return Degradation(tuple(rows), samples, guidance_scale, seed, unrelated, info.data_range, np.stack(shown))


def _full_run(choices: Sequence[Choice], of: Choice) -> Choice:
    """The run that a choice is compared with; see ``DegradationRow.compared_with``."""
    right = "ddpm" if of.sampler == "ddpm_strided" else of.sampler if of.table.uses_noise else "ddim"
    peers = [one for one in choices if one.sampler == right] or [one for one in choices if one.sampler == of.sampler]
    return max(peers, key=lambda one: one.steps)
