"""The orderings that the literature leads one to expect of a frontier, each with what was measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from stepfuse.analysis.experiments.frontier import Frontier, FrontierRow

STEPS = 50  # of the rows that are compared

NAIVE_AT_LEAST = 5.0
CLOSE = 1.3


@dataclass(frozen=True)
class Ordering:
    """One expected ordering.

    Attributes:
        claim: What is compared, as text.
        wanted: The bound, as text.
        measured: The values compared, as text, or what is missing for that.
        holds: Whether the bound holds; None where a value is reported without a bound.

    Examples:
        >>> from stepfuse.analysis import Ordering
        >>> Ordering("DDIM 50 against DDPM", "at most 1.5 times", "1.2 times", holds=True).holds
        True
    """

    claim: str
    wanted: str
    measured: str
    holds: bool | None


def broken_orderings(frontier: Frontier) -> list[str]:
    """The orderings that do not hold, one line for each; empty if all do.

    Examples:
        >>> from stepfuse.analysis import broken_orderings, frontier
        >>> with sf.Engine.load("fashion") as engine:
        ...     found = frontier(engine, samples=2, latency_repeats=1, configurations=[("ddim", {"steps": 3})])
        >>> len(broken_orderings(found)) > 0
        True
    """
    return [f"{one.claim}: {one.wanted}, got {one.measured}" for one in orderings(frontier) if one.holds is False]


def orderings(frontier: Frontier) -> list[Ordering]:
    """Checks a frontier. An ordering that cannot be checked, because a row or its distance is missing, does not hold.

    1. Naive striding collapses: at 50 steps its distance is at least ``NAIVE_AT_LEAST`` times that of DDIM, both
       without guidance.
    2. DDIM 50 is close to DDPM of all steps: at most ``CLOSE`` times its distance. DDPM is taken without guidance, as
       it was published; DDIM at its best guidance (without, for a model that has none). If there is a row of DDPM with
       guidance, DDIM at the same guidance is held to the same bound. The ratio of both without guidance is reported
       without a bound: the network's error weighs more in the ODE. On CIFAR-10 a public
       checkpoint has 5.52 with DDIM 100 and 3.17 with DDPM 1000 (README of zeqiang-lai/ddpmx, ema_cifar10).
    3. The distilled model, at its own number of steps, has a lower latency than every row of its teacher.
       Its distance is at least that of DDIM 50 at its teacher's usual guidance, which it was trained to imitate, over
       ``CLOSE`` (lower would mean that it learnt something else, or that the judge is fooled), and at most that of
       naive striding at 50 steps, which takes six times the passes.

    Examples:
        >>> from stepfuse.analysis import frontier, orderings
        >>> with sf.Engine.load("fashion") as engine:
        ...     found = frontier(engine, samples=2, latency_repeats=1, configurations=[("ddim", {"steps": 3})])
        >>> orderings(found)[0].holds  # what is missing does not hold
        False
    """
    return list(_checked(frontier))


def _checked(frontier: Frontier) -> Iterator[Ordering]:
    naive = _find(frontier, "ddpm_strided", STEPS, 1.0)
    ddim = _find(frontier, "ddim", STEPS, 1.0)
    ddpm = _find(frontier, "ddpm", None, 1.0)
    yield _ratio("naive strided DDPM 50 over DDIM 50, no guidance", naive, ddim, at_least=NAIVE_AT_LEAST)
    yield _ratio("DDIM 50 at its best guidance over DDPM", _best_guided(frontier) or ddim, ddpm, at_most=CLOSE)
    for row in _of_teacher(frontier, "ddpm"):
        if row.guidance_scale != 1:
            same = _find(frontier, "ddim", STEPS, row.guidance_scale)
            yield _ratio(f"DDIM 50 over DDPM, both at guidance {row.guidance_scale:g}", same, row, at_most=CLOSE)
    yield _ratio("DDIM 50 over DDPM, no guidance", ddim, ddpm)
    students = [row for row in frontier.rows if row.model == "student"]
    student = max(students, key=lambda row: row.steps) if students else None
    usual = _find(frontier, "ddim", STEPS, frontier.guidance_scale)
    yield _fastest(frontier, student)
    yield _ratio("distilled over DDIM 50 at its teacher's guidance", student, usual, at_least=1 / CLOSE)
    yield _ratio("distilled over naive strided DDPM 50", student, naive, at_most=1.0)


def _fastest(frontier: Frontier, student: FrontierRow | None) -> Ordering:
    claim, wanted = "latency of the distilled model", "must be below that of all other rows"
    others = [row for row in frontier.rows if row.model == "teacher"]
    if student is None or not others:
        return Ordering(claim, wanted, "no such row", holds=False)
    next_best = min(others, key=lambda row: row.latency_ms)
    measured = f"{student.latency_ms:.3g} ms, {next_best.label} {next_best.latency_ms:.3g} ms"
    return Ordering(claim, wanted, measured, student.latency_ms < next_best.latency_ms)


def _ratio(
    claim: str,
    row: FrontierRow | None,
    over: FrontierRow | None,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
) -> Ordering:
    """The ratio of two rows' distances against a bound, or against none."""
    bounds = [f"at {word} {bound:.3g}" for word, bound in (("least", at_least), ("most", at_most)) if bound is not None]
    wanted = (
        f"the ratio of distances must be {bounds[0]}" if bounds else "the ratio of distances is not held to a bound"
    )
    if row is None or over is None or row.distance is None or over.distance is None:
        missing = "no such row" if row is None or over is None else "no distance"
        return Ordering(claim, wanted, missing, holds=False if bounds else None)
    ratio = row.distance / over.distance if over.distance else float("inf")
    holds = (at_least is None or ratio >= at_least) and (at_most is None or ratio <= at_most)
    measured = f"{row.distance:.3g} ({row.label}) / {over.distance:.3g} ({over.label}) = {ratio:.3g}"
    return Ordering(claim, wanted, measured, holds if bounds else None)


def _of_teacher(frontier: Frontier, sampler: str) -> list[FrontierRow]:
    return [row for row in frontier.rows if row.model == "teacher" and row.sampler == sampler]


def _find(frontier: Frontier, sampler: str, steps: int | None, scale: float) -> FrontierRow | None:
    """The teacher's row of a sampler, step count and scale; the one of most steps if ``steps`` is None."""
    rows = [row for row in _of_teacher(frontier, sampler) if row.guidance_scale == scale and steps in (None, row.steps)]
    return max(rows, key=lambda row: row.steps, default=None)


def _best_guided(frontier: Frontier) -> FrontierRow | None:
    rows = [row for row in _of_teacher(frontier, "ddim") if row.steps == STEPS and row.guidance_scale != 1]
    return min(rows, key=lambda row: float("inf") if row.distance is None else row.distance, default=None)
