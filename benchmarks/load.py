"""A load of mixed requests, and what a system made of it.

``live.py`` runs such a load on a real system, ``simulated.py`` on a virtual clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache

import numpy as np
import numpy.typing as npt

import stepfuse as sf
from stepfuse import _core
from stepfuse.serving.config import CostCurve

SEED = 0
STEPS = (8, 100)
GUIDANCE, GUIDED_SHARE = 3.0, 0.7
SAMPLERS = ("ddim", "dpmpp_2m")
CLASSES = 10
Floats = npt.NDArray[np.float64]
Trace = Sequence[tuple[int, float, float, int, int, int]]


@dataclass(frozen=True)
class Asked:
    """What one request asks for.

    Attributes:
        sampler: A name of ``stepfuse.samplers.SAMPLERS``.
        steps: Number of steps.
        rows: Rows of each forward: 2 if guided, 1 if not.
        label: Class.
        seed: Of its noise.
    """

    sampler: str
    steps: int
    rows: int
    label: int
    seed: int

    @property
    def guidance_scale(self) -> float:
        """1 is one row a step."""
        return GUIDANCE if self.rows == 2 else 1.0

    @property
    def passes(self) -> int:
        """Rows of all its forwards."""
        return self.rows * self.steps

    def request(self) -> sf.Request:
        """For ``Engine.submit``."""
        return sf.Request(
            cond=self.label,
            sampler=self.sampler,
            steps=self.steps,
            guidance_scale=self.guidance_scale,
            seed=self.seed,
        )

    def table(self) -> _core.Table:
        """For ``_core.replay``."""
        return _compiled(self.sampler, self.steps, self.guidance_scale)

    def alone(self, cost: CostCurve) -> float:
        """Seconds that it takes on an idle engine."""
        return self.steps * cost.seconds(self.rows)


@cache
def _compiled(sampler: str, steps: int, guidance_scale: float) -> _core.Table:
    make = sf.samplers.SAMPLERS[sampler]
    table = make(sf.NoiseSchedule.linear(), steps, guidance_scale=guidance_scale)
    return _core.Table(table.rows, table.init_scale)


@dataclass(frozen=True)
class Load:
    """Requests and when they arrive.

    Attributes:
        asked: In the order of arrival.
        at: Seconds from the beginning, one a request.
    """

    asked: Sequence[Asked]
    at: Floats

    def alone(self, cost: CostCurve) -> Floats:
        """Seconds that each takes on an idle engine."""
        return np.array([asked.alone(cost) for asked in self.asked])


def describe(steps: tuple[int, int] = STEPS) -> str:
    """What ``poisson`` makes, for a report."""
    return (
        f"open loop, Poisson arrivals; steps uniform {steps[0]}..{steps[1]}, {GUIDED_SHARE:.0%} guided"
        f" (scale {GUIDANCE:g}, 2 rows), the others 1 row; {' or '.join(SAMPLERS)}; seed {SEED}"
    )


def burst(count: int, seed: int = SEED, steps: tuple[int, int] = STEPS) -> Load:
    """A closed burst: all are there at once. ``poisson`` gives the same requests arrival times."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(steps[0], steps[1] + 1, count)
    guided = rng.random(count) < GUIDED_SHARE
    samplers, labels = rng.integers(len(SAMPLERS), size=count), rng.integers(CLASSES, size=count)
    columns = zip(counts.tolist(), guided.tolist(), samplers.tolist(), labels.tolist(), strict=True)
    asked = [Asked(SAMPLERS[s], n, 1 + two, label, i) for i, (n, two, s, label) in enumerate(columns)]
    return Load(asked, np.zeros(count))


def poisson(count: int, rate: float, seed: int = SEED, steps: tuple[int, int] = STEPS) -> Load:
    """An open loop of ``rate`` requests a second. Other rates stretch the same arrivals."""
    gaps = np.random.default_rng([seed, 1]).exponential(size=count)
    return replace(burst(count, seed, steps), at=np.cumsum(gaps) / rate)


@dataclass(frozen=True)
class Outcome:
    """What a system made of a load.

    Attributes:
        finished: Seconds on the load's clock at which each request was answered.
        busy: Seconds in which the system worked.
        forwards: Calls of the network.
        passes: Rows of them that a request needed.
        held: Rows of them that were held for a request, needed or not.
        trace: (iteration, began, ended, request, step, row) of each row of a forward, if asked for.
    """

    finished: Floats
    busy: float
    forwards: int
    passes: int
    held: int
    trace: Trace = ()


def summary(load: Load, outcome: Outcome, cost: CostCurve, warm: int) -> dict[str, float]:
    """Figures of an outcome; latencies are those of all but the first ``warm`` requests."""
    latency = (outcome.finished - load.at)[warm:]
    slowdown = latency / load.alone(cost)[warm:]
    makespan = float(outcome.finished.max() - load.at[0])
    return {
        "mean_s": float(latency.mean()),
        **{f"p{p}_s": float(np.percentile(latency, p)) for p in (50, 95, 99)},
        "max_s": float(latency.max()),
        "mean_slowdown": float(slowdown.mean()),
        **{f"p{p}_slowdown": float(np.percentile(slowdown, p)) for p in (95, 99)},
        "slower_than_5x_alone": float(np.mean(slowdown > 5)),
        "images_per_s": len(load.at) / makespan,
        "makespan_s": makespan,
        "rows_a_forward": outcome.passes / outcome.forwards,
        "waste": 1 - outcome.passes / outcome.held,
        "utilisation": outcome.busy / makespan,
    }


def take_batch(load: Load, waiting: deque[int], max_rows: int) -> list[int]:
    """Takes a static batch off the queue, first come, first served; ``max_rows=0`` takes one request alone."""
    taken = [waiting.popleft()]
    rows = load.asked[taken[0]].rows
    while waiting and rows + load.asked[waiting[0]].rows <= max_rows:
        taken.append(waiting.popleft())
        rows += load.asked[taken[-1]].rows
    return taken


def say(text: str) -> None:
    """A line of progress."""
    print(f"{datetime.now().astimezone():%H:%M:%S}  {text}", flush=True)
