"""Samplers made by hand, at as many forwards as a fitted table has: what it is compared with."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from stepfuse.engine import Engine
from stepfuse.fitting.problem import Problem, fine_table, rms
from stepfuse.samplers import SAMPLERS
from stepfuse.samplers.levels import KINDS
from stepfuse.samplers.table import StepTable

_LEVELS: tuple[dict[str, Any], ...] = (
    {"spacing": "trailing"},
    {"spacing": "leading"},
    {"spacing": "linspace"},
    *({"levels": name} for name in KINDS if name != "schedule"),
    {},
)
_ORDERS: tuple[dict[str, Any], ...] = ({}, {"order": 3}, {"order": 1})
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
    """
    scale = float(table.options.get("guidance_scale", 1.0))
    reference = fine_table(engine, scale, 200) if reference is None else reference
    problem = Problem.of(engine, samples, cond, reference, seed, negative_cond=negative_cond, progress=progress)
    first = problem.part(0, min(samples, _SCREENED))
    ranked = [
        Compared(name, one, rms(first.sample(one, first.noise) - first.target), None)
        for name, one in rivals(engine, len(table), scale)
    ]
    nearest = min(one.error for one in ranked)
    near, found = ([one for one in ranked if (one.error <= _NEAR * nearest) == is_near] for is_near in (True, False))
    for name, one in [(table.sampler, table), *((one.name, one.table) for one in near)]:
        images = problem.sample(one, problem.noise, progress=progress)
        found.append(Compared(name, one, rms(images - problem.target), judge and judge(images)))
    return sorted(found, key=lambda one: one.error)


def rivals(engine: Engine, forwards: int, guidance_scale: float) -> Sequence[tuple[str, StepTable]]:
    """All deterministic samplers that a model takes with this many forwards, each on the noise levels it may have.

    Args:
        engine: The model's.
        forwards: Rows of each table.
        guidance_scale: Of all of them.

    Returns:
        Names and tables, each different.
    """
    found: dict[bytes, tuple[str, StepTable]] = {}
    for sampler, levels, order in product(SAMPLERS, _LEVELS, _ORDERS):
        for steps in _steps(sampler, forwards):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of a late start: it will not be the best
                    table = engine.table(sampler=sampler, steps=steps, guidance_scale=guidance_scale, **levels, **order)
            except (ValueError, TypeError):  # it has no such option, or not with these steps
                continue
            if len(table) == forwards and not table.uses_noise:
                said = [f"{name} {value}" for name, value in {**levels, **order}.items()]
                found.setdefault(table.rows.tobytes(), (", ".join([sampler, *said]), table))
    return list(found.values())


def _steps(sampler: str, forwards: int) -> Iterator[int]:
    """Steps that a sampler may be asked for to take this many forwards; the naive baseline is none."""
    if sampler != "ddpm_strided":
        yield from sorted({forwards, forwards - 1, (forwards + 1) // 2} - {0}, reverse=True)
