"""What a forward costs on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from stepfuse.serving.config import CostCurve

_REPEATS = 7
_LEAST_FIXED = 0.05  # of a row's time: no forward is free, and planning for that would give up all sharing


def measure_cost(forward: Callable[[int], None], max_rows: int) -> CostCurve:
    """The straight line that fits forwards of 1, 2, 4, ... ``max_rows`` rows best, relatively; the least time of each.

    Whatever else the machine does only adds to a time, so the least of several says most of the network.
    """
    counts = sorted({*(1 << i for i in range(max_rows.bit_length())), max_rows})
    seconds = np.empty((_REPEATS, len(counts)))
    for rows in counts:
        forward(rows)  # what is made once a row count
    for repeat in range(_REPEATS):  # in turn, so that a slow moment falls on all
        for i, rows in enumerate(counts):
            began = time.perf_counter()
            forward(rows)
            seconds[repeat, i] = time.perf_counter() - began
    least = seconds.min(axis=0)
    lines = np.stack([np.ones(len(counts)), np.array(counts, dtype=float)], axis=1)
    fixed, row = np.linalg.lstsq(lines / least[:, None], np.ones(len(counts)), rcond=None)[0]
    if row <= 0:  # rows cost nothing that can be seen
        row = float(least[-1]) / max_rows
    return CostCurve(max(float(fixed), _LEAST_FIXED * float(row)), float(row))
