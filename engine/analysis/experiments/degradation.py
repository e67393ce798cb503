"""What fewer steps cost: each sampler at falling step counts, against its full run and against real data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    pass

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
        compared_with: That run: DDIM's longest for deterministic samplers, which all solve one ODE; DDPM's for the
            naive one, which is DDPM if it takes all steps; the sampler's own for the others. Those with noise draw
            another at another step count and cannot agree: ``Degradation.unrelated_mse`` is what that looks like.
        distance: Fréchet distance to the real data; None if nothing judges the samples.
        accuracy: Share of the samples that the judge names as asked for; None if none does.
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
    """What ``step_degradation`` found.

    Attributes:
        rows: Sampler by sampler, the longest run first.
        samples: Samples of each row.
        guidance_scale: Of all of them.
        seed: Of the first sample; sample i has seed + i.
        unrelated_mse: Mean squared error between full runs from different starting noises, of one class where the
            classes are taken in turn; None with too few samples.
        data_range: Least and greatest value of a sample.
        images: The first sample of each row, shape (rows, *shape).
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
    """Draws the same samples at falling step counts.

    Args:
        engine: Draws.
        steps: Step counts, the largest first; None is 1000, 500, 250, 100, 50 and 25 as far as the model's T goes.
            A sampler in ``MOST_STEPS`` gets those that it has a use for.
        samplers: Names of samplers, each with its default options.
        samples: Samples of each; more than there are features, where something judges them.
        cond: As in ``Engine.sample``; None is all classes in turn, if the model has classes.
        features: A judge, or any function from samples (n, *shape) to features (n, F); None leaves the distance out.
        reference: Moments of the real data's features, for a function.
        guidance_scale: 1 is no guidance.
        seed: Of the first sample.
        progress: Whether bars are shown.

    Raises:
        ValueError: If a bound is broken; the message carries the value received.
        TypeError: If an argument is of the wrong kind.
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
    turn = cycled_classes(info, samples) if cond is None else None
    cond = cond if turn is None else turn
    drawn: dict[StepTable, tuple[Images, float]] = {}

    def draw(table: StepTable) -> tuple[Images, float]:
        if table not in drawn:  # the naive sampler of all steps is DDPM itself
            with counted(engine) as passes:
                images = engine.sample(samples, cond=cond, table=table, seed=seed, progress=progress)
            drawn[table] = images, passes.count / samples
        return drawn[table]

    labels = class_labels(info, cond, samples)
    rows, shown = [], []
    for choice in choices:
        images, passes = draw(choice.table)
        full = _full_run(choices, choice)
        rows.append(
            DegradationRow(
                sampler=choice.sampler,
                steps=choice.steps,
                passes=passes,
                mse=mse(images, draw(full.table)[0]),
                compared_with=sampler_title(full.sampler, full.steps),
                distance=distance_to_real(images, features, reference),
                accuracy=share_named_right(images, features, labels),
            )
        )
        shown.append(images[0])
    full_images = draw(_full_run(choices, choices[0]).table)[0]
    apart = len(set(turn)) if turn else 1  # to the next sample of the same class
    unrelated = mse(full_images[apart:], full_images[:-apart]) if samples > apart else None
    return Degradation(tuple(rows), samples, guidance_scale, seed, unrelated, info.data_range, np.stack(shown))


def _full_run(choices: Sequence[Choice], of: Choice) -> Choice:
    """The run that a choice is compared with; see ``DegradationRow.compared_with``."""
    right = "ddpm" if of.sampler == "ddpm_strided" else of.sampler if of.table.uses_noise else "ddim"
    peers = [one for one in choices if one.sampler == right] or [one for one in choices if one.sampler == of.sampler]
    return max(peers, key=lambda one: one.steps)
