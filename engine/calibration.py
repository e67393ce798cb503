"""What a forward costs on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from stepfuse.policy import CostCurve

_REPEATS = 5


def measure_cost(forward: Callable[[int], None], max_rows: int) -> CostCurve:
    """The straight line that fits the median times of forwards of 1, 2, 4, ... ``max_rows`` rows best, relatively."""
    counts = sorted({*(1 << i for i in range(max_rows.bit_length())), max_rows})
    seconds = np.empty((_REPEATS, len(counts)))
    for rows in counts:
        forward(rows)  # what is made once a row count
    for repeat in range(_REPEATS):  # in turn, so that a slow moment falls on all
        for i, rows in enumerate(counts):
            began = time.perf_counter()
            forward(rows)
            seconds[repeat, i] = time.perf_counter() - began
    medians = np.median(seconds, axis=0)
    lines = np.stack([np.ones(len(counts)), np.array(counts, dtype=float)], axis=1)
    fixed, row = np.linalg.lstsq(lines / medians[:, None], np.ones(len(counts)), rcond=None)[0]
    if fixed < 0 or row <= 0:  # rows cost more than in proportion, or nothing that can be seen
        fixed, row = 0.0, float(np.mean(medians / counts))
    return CostCurve(float(fixed), float(row))
