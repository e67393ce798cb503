"""Where a fit may begin: the best samplers that were made by hand."""

from __future__ import annotations

import numpy as np

from stepfuse.fitting.problem import Problem
from stepfuse.fitting.rivals import rivals
from stepfuse.fitting.student import Student

_MOST = 5


def starts(problem: Problem, blank: Student) -> list[Student]:
    """The best samplers with as many forwards, each on other timesteps, as students; the best first.

    Where a fit ends depends on where it begins, on its timesteps above all: the best start alone is not enough.

    Args:
        problem: What decides which is the best; few noises are enough.
        blank: The students' form.
    """
    best: dict[bytes, tuple[float, Student]] = {}
    for _, table in rivals(problem.engine, len(blank), blank.guidance_scale):
        student = blank.beginning_as(table)
        error, timesteps = problem.error(student), table["t"].tobytes()
        if np.isfinite(error) and (timesteps not in best or error < best[timesteps][0]):
            best[timesteps] = error, student
    ranked = sorted(best.values(), key=lambda one: one[0])
    return [student for _, student in ranked[:_MOST]]
