"""Timing several ways to do work in turn: one process, and in every round each of them once, in a shuffled order."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import numpy.typing as npt

Key = TypeVar("Key")
Floats = npt.NDArray[np.float64]

#: Rounds: fewer say nothing of a spread, and more than this many nothing new.
LEAST_ROUNDS, MOST_ROUNDS = 5, 200

_DRAWS = 2000  # of a bootstrap


def in_turn(
    calls: Mapping[Key, Callable[[], object]],
    *,
    seconds: float,
    least_rounds: int = LEAST_ROUNDS,
    on_round: Callable[[int, int], object] | None = None,
) -> dict[Key, list[float]]:
    """Times every call once a round, after two rounds that warm up: what is made once, and how long a round takes.

    Args:
        calls: The work, by any key.
        seconds: How long all rounds may take; at least ``least_rounds`` are run, however long they take.
        least_rounds: At least 1.
        on_round: Is called with the rounds done and all of them.

    Returns:
        Seconds of each call, one a round: value i of all of them was taken in round i.
    """
    found: dict[Key, list[float]] = {key: [] for key in calls}
    for call in calls.values():
        call()
    began = time.perf_counter()
    for call in calls.values():
        call()
    a_round = time.perf_counter() - began
    rounds = max(least_rounds, min(MOST_ROUNDS, int(seconds / max(a_round, 1e-9))))
    order, shuffle = list(calls), random.Random(0).shuffle
    for done in range(rounds):
        shuffle(order)  # what one leaves in the caches must not always meet the same other
        with _without_collector():
            for key in order:
                began = time.perf_counter()
                calls[key]()
                found[key].append(time.perf_counter() - began)
        if on_round is not None:
            on_round(done + 1, rounds)
    return found


def percentile(values: Sequence[float] | Floats, percent: float) -> float:
    """Linear between the two nearest values; NaN of none."""
    return float(np.percentile(values, percent)) if len(values) else float("nan")


def spread(values: Sequence[float]) -> float:
    """How far values lie apart: from the 20th to the 80th percentile, as a share of the median."""
    return (percentile(values, 80) - percentile(values, 20)) / percentile(values, 50)


def median_interval(values: Sequence[float] | Floats, confidence: float = 0.95) -> tuple[float, float]:
    """Where the median lies: percentiles of the medians of as many values drawn again, with replacement.

    The bootstrap of Efron (1979), percentile method. It takes the values as independent.
    """
    return _bounds(_medians(values, np.random.default_rng(0)), confidence)


def ratio_interval(
    values: Sequence[float] | Floats, others: Sequence[float] | Floats, confidence: float = 0.95
) -> tuple[float, float]:
    """Where the ratio of the medians of two independent sets lies: both are drawn again."""
    rng = np.random.default_rng(0)
    return _bounds(_medians(values, rng) / _medians(others, rng), confidence)


def _medians(values: Sequence[float] | Floats, rng: np.random.Generator) -> Floats:
    given = np.asarray(values, dtype=np.float64)
    medians: Floats = np.median(given[rng.integers(len(given), size=(_DRAWS, len(given)))], axis=1)
    return medians


def _bounds(medians: Floats, confidence: float) -> tuple[float, float]:
    below = 50 * (1 - confidence)
    return percentile(medians, below), percentile(medians, 100 - below)


@contextmanager
def _without_collector() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
