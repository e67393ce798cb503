"""Systems on a virtual clock, which a forward advances by its cost: the engine's planner, and static batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
from load import Asked, Load, Outcome, burst, take_batch

from stepfuse import _core
from stepfuse.serving.config import CostCurve, Policy, Serving

CAPACITY_REQUESTS = 8192


def median_cost(curves: Sequence[CostCurve]) -> CostCurve:
    """The curve whose forward of 8 rows is the median one."""
    return sorted(curves, key=lambda curve: curve.seconds(8))[len(curves) // 2]


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
    conditional, even = [True] * len(tables), [0] * len(tables)
    options, curve = serving.loop_options(planned), _core.CostCurve(cost.fixed, cost.row)
    found = _core.replay(
        tables, load.at.tolist(), conditional, list(priorities or even), serving.max_rows, options, curve, trace
    )
    counters = found["counters"]
    forwards, passes = counters["forwards"], counters["network_passes"]
    held = passes + counters["padded_rows"]
    busy = cost.fixed * forwards + cost.row * held
    return Outcome(found["finished"], busy, forwards, passes, held, found["trace"]), counters


def serve(
    load: Load,
    *,
    cost: CostCurve,
    planned: CostCurve | None,
    max_rows: int,
    policy: Policy,
    ageing: float | None = None,
) -> Outcome:
    """The engine under a policy; ``planned`` as in ``replayed``."""
    serving = Serving(max_rows=max_rows, policy=policy, ageing=ageing, max_queue=len(load.at))
    return replayed(load, cost, serving, planned=planned)[0]


def capacity(cost: CostCurve, max_rows: int) -> float:
    """Requests a unit of time of a burst through full forwards."""
    mix = burst(CAPACITY_REQUESTS)
    outcome = serve(mix, cost=cost, planned=None, max_rows=max_rows, policy="fifo")
    return len(mix.at) / float(outcome.finished.max())


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
    members: Sequence[Asked], batch: Sequence[int], cost: CostCurve, began: float, iteration: int
) -> list[tuple[int, float, float, int, int, int]]:
    """Rows stay where they are, so that those left empty show."""
    entries = []
    for step in range(max(asked.steps for asked in members)):
        ended = began + cost.seconds(sum(asked.rows for asked in members if step < asked.steps))
        row = 0
        for index, asked in zip(batch, members, strict=True):
            rows = range(row, row := row + asked.rows)
            entries += [(iteration + step, began, ended, index, step, r) for r in rows if step < asked.steps]
        began = ended
    return entries
