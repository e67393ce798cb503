"""A load of mixed requests, what became of it, and systems as models on a virtual clock.

``mixed_load.py`` measures such a load on the real engine, ``simulate.py`` replays it through the compiled planner.
"""

from __future__ import annotations

import queue
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt

import stepfuse as sf
from stepfuse import _core
from stepfuse.serving.config import CostCurve, Serving

SEED = 0
STEPS = (8, 100)
GUIDANCE, GUIDED_SHARE = 3.0, 0.7
SAMPLERS = ("ddim", "dpmpp_2m")
CLASSES = 10
TOLD_SECONDS = 15.0
DESCRIPTION = (
    f"open loop, Poisson arrivals; steps uniform {STEPS[0]}..{STEPS[1]}, {GUIDED_SHARE:.0%} guided"
    f" (scale {GUIDANCE:g}, 2 rows), the others 1 row; {' or '.join(SAMPLERS)}; seed {SEED}"
)

Floats = npt.NDArray[np.float64]
Images = npt.NDArray[np.float32]
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


def burst(count: int, seed: int = SEED) -> Load:
    """A closed burst: all are there at once. ``poisson`` gives the same requests arrival times."""
    rng = np.random.default_rng(seed)
    steps = rng.integers(STEPS[0], STEPS[1] + 1, count)
    guided = rng.random(count) < GUIDED_SHARE
    samplers, labels = rng.integers(len(SAMPLERS), size=count), rng.integers(CLASSES, size=count)
    columns = zip(steps.tolist(), guided.tolist(), samplers.tolist(), labels.tolist(), strict=True)
    asked = [Asked(SAMPLERS[s], n, 1 + two, label, i) for i, (n, two, s, label) in enumerate(columns)]
    return Load(asked, np.zeros(count))


def poisson(count: int, rate: float, seed: int = SEED) -> Load:
    """An open loop of ``rate`` requests a second. Other rates stretch the same arrivals."""
    gaps = np.random.default_rng([seed, 1]).exponential(size=count)
    return replace(burst(count, seed), at=np.cumsum(gaps) / rate)


@dataclass(frozen=True)
class Outcome:
    """What a system made of a load.

    Attributes:
        finished: Seconds on the load's clock at which each request was answered.
        busy: Seconds in which the system worked.
        forwards: Calls of the network.
        passes: Rows of them that a request needed.
        held: Rows of them that were held for a request, needed or not.
        trace: (turn, began, ended, request, step, row) of each row of a forward, if asked for.
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


def replayed(
    load: Load,
    cost: CostCurve,
    serving: Serving,
    *,
    planned: CostCurve | None,
    priorities: Sequence[int] | None = None,
    trace: bool = False,
) -> tuple[Outcome, dict[str, Any]]:
    """The engine's own loop on a virtual clock.

    Args:
        load: The requests.
        cost: What a forward takes.
        serving: How they share the engine.
        planned: What the planner takes a forward to cost; None is an engine without ``calibrate``: full rows.
        priorities: One a request; None: all alike.
        trace: Whether each row of each forward is recorded.

    Returns:
        The outcome, and the loop's counters, whose ``loop_seconds`` are real.
    """
    tables = [asked.table() for asked in load.asked]
    told, even = [True] * len(tables), [0] * len(tables)
    options, curve = serving.loop_options(planned), _core.CostCurve(cost.fixed, cost.row)
    found = _core.replay(
        tables, load.at.tolist(), told, list(priorities or even), serving.max_rows, options, curve, trace
    )
    counters = found["counters"]
    forwards, passes = counters["forwards"], counters["network_passes"]
    held = passes + counters["padded_rows"]
    busy = cost.fixed * forwards + cost.row * held
    return Outcome(found["finished"], busy, forwards, passes, held, found["trace"]), counters


def take_batch(load: Load, waiting: deque[int], max_rows: int) -> list[int]:
    """Takes a static batch off the queue, first come, first served; ``max_rows=0`` takes one request alone."""
    taken = [waiting.popleft()]
    rows = load.asked[taken[0]].rows
    while waiting and rows + load.asked[waiting[0]].rows <= max_rows:
        taken.append(waiting.popleft())
        rows += load.asked[taken[-1]].rows
    return taken


def static_batches(load: Load, cost: CostCurve, max_rows: int, *, trace: bool = False) -> Outcome:
    """Batches that wait for their slowest member, whose finished members leave the forward.

    When it is free, the system takes what waits, first come, first served, as far as ``max_rows`` goes, and answers all
    when the slowest is done; ``max_rows=0`` is one request at a time.
    """
    finished = np.zeros(len(load.at))
    entries: list[tuple[int, float, float, int, int, int]] = []
    waiting: deque[int] = deque()
    now = busy = 0.0
    forwards = held = arrived = 0
    while waiting or arrived < len(load.at):
        if not waiting:
            now = max(now, float(load.at[arrived]))
        while arrived < len(load.at) and load.at[arrived] <= now:
            waiting.append(arrived)
            arrived += 1
        batch = take_batch(load, waiting, max_rows)
        members = [load.asked[i] for i in batch]
        steps = max(asked.steps for asked in members)
        if trace:
            entries += _batch_trace(members, batch, cost, now, forwards)
        seconds = cost.fixed * steps + cost.row * sum(asked.passes for asked in members)
        forwards += steps
        held += steps * sum(asked.rows for asked in members)
        now, busy = now + seconds, busy + seconds
        finished[batch] = now
    return Outcome(finished, busy, forwards, sum(asked.passes for asked in load.asked), held, entries)


def _batch_trace(
    members: Sequence[Asked], batch: Sequence[int], cost: CostCurve, began: float, turn: int
) -> list[tuple[int, float, float, int, int, int]]:
    """Rows stay where they are, so that those left empty show."""
    entries = []
    for step in range(max(asked.steps for asked in members)):
        ended = began + cost.seconds(sum(asked.rows for asked in members if step < asked.steps))
        row = 0
        for index, asked in zip(batch, members, strict=True):
            rows = range(row, row := row + asked.rows)
            entries += [(turn + step, began, ended, index, step, r) for r in rows if step < asked.steps]
        began = ended
    return entries


def say(text: str) -> None:
    """A line of progress."""
    print(f"{datetime.now().astimezone():%H:%M:%S}  {text}", flush=True)


@dataclass
class Run:
    """A load on a real system. Times are seconds on the load's clock, one a request.

    Attributes:
        load: The requests.
        label: What progress lines call it.
        submitted: When each was handed over.
        finished: When each was answered; 0: not yet.
        busy: Seconds in which the system worked.
        forwards, passes, held: As in ``Outcome``.
        facts: What else is known of the run.
    """

    load: Load
    label: str
    submitted: Floats
    finished: Floats
    busy: float = 0.0
    forwards: int = 0
    passes: int = 0
    held: int = 0

    @classmethod
    def of(cls, load: Load, label: str) -> Run:
        """A run that has not begun."""
        return cls(load, label, np.zeros(len(load.at)), np.zeros(len(load.at)))

    def say(self) -> None:
        """Tells how far it is."""
        come, answered = np.count_nonzero(self.submitted), np.count_nonzero(self.finished)
        say(f"{self.label}: {come} of {len(self.load.at)} requests have come, {answered} are answered")

    def dispatch(self, began: float, arrive: Callable[[int], object]) -> None:
        """The client: sleeps until each arrival and hands the request over."""
        told = began
        for i, at in enumerate(self.load.at):
            if (left := began + at - time.perf_counter()) > 0:
                time.sleep(left)
            self.submitted[i] = now = time.perf_counter() - began
            arrive(i)
            if began + now - told > TOLD_SECONDS:
                told = began + now
                self.say()

    def continuous(self, engine: sf.Engine) -> None:
        """Every request is submitted as it comes."""
        requests = [asked.request() for asked in self.load.asked]
        futures: list[Future[Images]] = []
        began = time.perf_counter() + 0.1

        def answered(i: int, future: Future[Images]) -> None:
            self.finished[i] = time.perf_counter() - began

        def arrive(i: int) -> None:
            futures.append(engine.submit(requests[i]))
            futures[i].add_done_callback(partial(answered, i))

        self.dispatch(began, arrive)
        for future in futures:
            future.result()

    def queued(self, serve: Callable[[Sequence[int]], object], max_rows: int) -> None:
        """One thread takes what waits and fits, first come, first served, and answers all of it when all is done."""
        waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
        began = time.perf_counter() + 0.1

        def work() -> None:
            line: deque[int] = deque()
            left = len(self.load.at)
            while left:
                while not (line and waiting.empty()):
                    line.append(waiting.get())
                batch = take_batch(self.load, line, max_rows)
                taken = time.perf_counter()
                serve(batch)
                now = time.perf_counter()
                self.finished[batch] = now - began
                self.busy += now - taken
                members = [self.load.asked[i] for i in batch]
                self.held += max(asked.steps for asked in members) * sum(asked.rows for asked in members)
                left -= len(batch)

        with ThreadPoolExecutor(1) as pool:
            working = pool.submit(work)
            self.dispatch(began, waiting.put)
            while wait([working], TOLD_SECONDS).not_done:
                self.say()
            working.result()


def new_engine(bundle: str, threads: int, serving: Serving) -> sf.Engine:
    """An engine that has run every number of rows once."""
    engine = sf.Engine.load(bundle, threads=threads, serving=serving)
    engine.warmup(range(1, serving.max_rows + 1))
    return engine


def drawn(engine: sf.Engine, requests: Sequence[sf.Request]) -> None:
    """Submits all and waits for all."""
    for future in [engine.submit(request) for request in requests]:
        future.result()
