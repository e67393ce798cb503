"""The search for a student's numbers: least squares on the results of its whole run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from stepfuse.fitting.problem import Problem
from stepfuse.fitting.student import Float64Array, Student

_LEAST_GAIN = 2e-3  # of the error, as a share, below which a round was the last
_DAMPING, _MOST_DAMPING = 1e-2, 1e6  # shares of the diagonal: the first round's, and what is tried last


@dataclass(frozen=True)
class Round:
    """One round of the search.

    Attributes:
        student: Where it has led.
        damping: The next round's.
        error: RMS on the noises that it was fitted to.
        held_out: RMS on others.
    """

    student: Student
    damping: float
    error: float
    held_out: float


def search(
    begin: Student | Round,
    fitted: Problem,
    held_out: Problem,
    *,
    rounds: int,
    after: Callable[[Round], object] = lambda one: None,
) -> Round:
    """Levenberg's and Marquardt's method on all free numbers at once (Marquardt, 1963), from a student on.

    Args:
        begin: Where it begins, or a round that it goes on from.
        fitted: What the numbers are fitted to.
        held_out: What decides which round is kept.
        rounds: Most rounds.
        after: Called with each round that is the best so far on ``held_out``.

    Returns:
        The round with the least error on ``held_out``.
    """
    if isinstance(begin, Student):
        begin = Round(begin, _DAMPING, np.inf, np.inf)
    student = begin.student
    now = best = Round(student, begin.damping, fitted.error(student), held_out.error(student))
    for _ in range(rounds):
        found = _round(now, fitted, held_out)
        if found is None:
            break
        gain = 1 - found.error / now.error
        now = found
        if now.held_out < best.held_out:
            best = now
            after(best)
        if gain < _LEAST_GAIN:
            break
    return best


def _round(now: Round, fitted: Problem, held_out: Problem) -> Round | None:
    """The best of some dampings; None where none makes the error smaller."""
    _, gram, slope = fitted.linearized(now.student)
    scale = np.maximum(np.diag(gram), 1e-9 * np.diag(gram).max())
    best: tuple[float, float, Student] | None = None
    damping = now.damping / 10
    while damping < _MOST_DAMPING:
        student = now.student.with_vector(_moved(now.student, gram + np.diag(damping * scale), slope))
        error = fitted.error(student)
        if np.isfinite(error) and error < (best[0] if best else now.error):
            best = error, damping, student
        elif best is not None:
            break
        damping *= 10
    if best is None:
        return None
    error, damping, student = best
    return Round(student, damping, error, held_out.error(student))


def _moved(student: Student, gram: Float64Array, slope: Float64Array) -> Float64Array:
    """The free numbers after the step that solves ``gram @ step = -slope`` with timesteps held to the schedule.

    One that would leave it goes as far as its end, and the others' steps are solved for again with that.
    """
    vector, low, high = student.vector, *student.bounds
    step, held = np.zeros_like(slope), np.zeros(len(slope), dtype=bool)
    while True:
        loose = ~held
        right = -slope[loose] - gram[np.ix_(loose, held)] @ step[held]
        step[loose] = np.linalg.solve(gram[np.ix_(loose, loose)], right)
        beyond = loose & ((vector + step < low) | (vector + step > high))
        if not beyond.any():
            return vector + step
        step[beyond] = np.clip(vector + step, low, high)[beyond] - vector[beyond]
        held |= beyond
