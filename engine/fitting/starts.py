"""Where a fit may begin: the best samplers that were made by hand."""

from __future__ import annotations

import numpy as np

from stepfuse.fitting.problem import Problem
from stepfuse.fitting.rivals import rivals
from stepfuse.fitting.student import Student

_LATE = 0.99  # of the largest timestep: a run that begins below it begins late


def starts(problem: Problem, blank: Student) -> list[Student]:
    """The best sampler with as many forwards, and the best that begins late, as students.

    Where a fit ends depends on where it begins. The noisiest timesteps say little of a sample, and a run of few steps
    does better without them; but a fit that begins at the end of the schedule rarely leaves it.

    Args:
        problem: What decides which is the best; few noises are enough.
        blank: The students' form.
    """
    best: dict[bool, tuple[float, Student]] = {}
    for _, table in rivals(problem.engine, len(blank), blank.guidance_scale):
        student = blank.beginning_as(table)
        error, late = problem.error(student), bool(student.numbers[0, 0] < _LATE)
        if np.isfinite(error) and (late not in best or error < best[late][0]):
            best[late] = error, student
    return [student for _, student in best.values()]
