"""Timing several ways to do the same work, alternating: one process, one run, a shuffled order in every round."""

from __future__ import annotations

import argparse
import math
import random
import timeit
from collections.abc import Callable, Mapping
from dataclasses import dataclass

WARMUP_SECONDS = 0.1


@dataclass(frozen=True)
class Contender:
    """One way to do the work.

    Attributes:
        call: The work, timed.
        reset: Called before each batch of calls, not timed; for work that changes its own inputs.
        bytes_moved: Bytes that one call reads and writes, counted plainly.
    """

    call: Callable[[], object]
    reset: Callable[[], object] | None = None
    bytes_moved: int | None = None

    def seconds(self, calls: int) -> float:
        """Mean seconds of one of ``calls`` calls in a row, the garbage collector off."""
        return timeit.Timer(self.call, self.reset or "pass").timeit(calls) / calls


def in_turn(
    contenders: Mapping[str, Contender], *, rounds: int, batch_seconds: float = 0.005
) -> dict[str, list[float]]:
    """Times every contender once a round.

    Args:
        contenders: By name.
        rounds: Samples of each; sample i of all of them was taken in round i.
        batch_seconds: Short calls are timed in batches of about this length.

    Returns:
        Seconds a call by contender, a sample a round.
    """
    calls = {name: _warm_up(contender, batch_seconds) for name, contender in contenders.items()}
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    order, shuffle = list(contenders), random.Random(0).shuffle
    for _ in range(rounds):
        shuffle(order)  # what one leaves in the caches must not always meet the same other
        for name in order:
            samples[name].append(contenders[name].seconds(calls[name]))
    return samples


def _warm_up(contender: Contender, batch_seconds: float) -> int:
    """Calls that fill a batch, counted once the contender is warm."""
    calls, last = 1, contender.seconds(1)
    spent = last
    while spent < WARMUP_SECONDS:
        last = contender.seconds(calls)
        spent += last * calls
        calls *= 2
    return max(1, math.ceil(batch_seconds / last))


def arguments(description: str | None, *, bundle: bool = False) -> argparse.Namespace:
    """The options that the benchmarks share: ``quick``, and ``bundle`` where a model is run."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="few rounds: to see it work, not to quote")
    if bundle:
        parser.add_argument("--bundle", default="fashion", help="embedded model or bundle folder")
    return parser.parse_args()
