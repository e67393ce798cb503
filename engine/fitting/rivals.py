"""Samplers made by hand, at as many forwards as a fitted table has: what it is compared with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from stepfuse.engine import Engine
from stepfuse.fitting.hand_made import LEVELS, hand_made
from stepfuse.fitting.problem import Problem, fine_table, rms
from stepfuse.samplers.table import StepTable

_LEVELS = tuple(name for name in LEVELS if name != "published")  # searched for other models
_ORDERS = (None, 3, 1)
_SCREENED, _NEAR = 32, 1.5  # noises on which all are ranked, and how far from the best the others are measured
_OTHERS = 10**6  # seeds from here on: noises that no table was fitted to


@dataclass(frozen=True)
class Compared:
    """One way to sample, judged.

    Attributes:
        name: Such as ``unipc, karras``, or ``fitted-8``.
        table: Its table.
        error: RMS of its samples to the fine solution of the same noises.
        distance: What ``judge`` says of them; None without one, and where it is far from the best.

    Examples:
        >>> table = sf.samplers.ddim(sf.NoiseSchedule.linear(), steps=4)
        >>> one = sf.fitting.Compared("ddim", table, error=0.1, distance=None)
        >>> one.name, one.error
        ('ddim', 0.1)
    """

    name: str
    table: StepTable
    error: float
    distance: float | None


def compare(
    engine: Engine,
    table: StepTable,
    *,
    cond: Any = None,
    negative_cond: Any = None,
    samples: int = 256,
    seed: int = _OTHERS,
    reference: StepTable | None = None,
    judge: Callable[[Any], float] | None = None,
    progress: bool = False,
) -> list[Compared]:
    """A table beside all deterministic samplers with as many forwards, on the same noises; the least error first.

    Those that end more than half as far again as the best of them, by the first 32 noises, stay at that figure.

    Args:
        engine: The model's.
        table: Such as ``stepfuse.fit`` makes; its options have the guidance scale.
        cond: As in ``fit``.
        negative_cond: As in ``fit``.
        samples: Noises; more than a judge has features.
        seed: Of the first. ``fit`` takes its own from 0 on, unless it is asked for others.
        reference: The fine solution's table; None is ``unipc`` with 200 steps.
        judge: A distance of samples, such as ``stepfuse.analysis.Judge.distance``.
        progress: Whether bars are shown.

    Examples:
        >>> from stepfuse.analysis import GaussianMixture
        >>> engine = GaussianMixture([[1.0, 0.0], [-1.0, 0.0]], 0.1).engine(sf.NoiseSchedule.linear())
        >>> table = engine.table(sampler="ddim", steps=4)
        >>> reference = engine.table(sampler="unipc", steps=50)
        >>> found = sf.fitting.compare(engine, table, samples=32, reference=reference)
        >>> found[0].error <= found[-1].error
        True
    """
    scale = float(table.options.get("guidance_scale", 1.0))
    reference = fine_table(engine, scale, 200) if reference is None else reference
    problem = Problem.of(engine, samples, cond, reference, seed, negative_cond=negative_cond, progress=progress)
    first = problem.part(0, min(samples, _SCREENED))
    ranked = [Compared(name, one, first.error_of(one), None) for name, one in rivals(engine, len(table), scale)]
    nearest = min((one.error for one in ranked), default=0.0)
    near, found = ([one for one in ranked if (one.error <= _NEAR * nearest) == is_near] for is_near in (True, False))
    for name, one in [(table.sampler, table), *((one.name, one.table) for one in near)]:
        images = problem.sample(one, problem.noise, progress=progress)
        found.append(Compared(name, one, rms(images - problem.target), judge and judge(images)))
    return sorted(found, key=lambda one: one.error)


def rivals(engine: Engine, forwards: int, guidance_scale: float) -> list[tuple[str, StepTable]]:
    """All deterministic samplers that a model takes with this many forwards, each on the noise levels it may have.

    Args:
        engine: The model's.
        forwards: Rows of each table.
        guidance_scale: Of all of them.

    Returns:
        Names and tables, each different.
    """
    known = hand_made(engine, forwards, guidance_scale, levels=_LEVELS, orders=_ORDERS)
    return [(one.name, one.table) for one in known if len(one.table) == forwards and not one.table.uses_noise]
