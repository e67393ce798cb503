"""The systems that ``mixed_load.py`` compares: what all of them share, how each is run, and how each is simulated."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone

import numpy as np
from live import Run, new_engine, sample_all
from load import STEPS, Load, Outcome, burst, poisson, say, summary
from queued_diffusers import Diffusers
from simulated import median_cost, replayed, static_batches

from stepfuse.serving.config import CostCurve, Policy, Serving

CLAIMED_LOAD = 0.8
STATIC_CAPS = (8, 16, 64)
AUTO, OURS, FIFO, ONE, STATIC, DIFFUSERS = "auto", "ours", "fifo", "one", "static", "diffusers"
#: The engine's policy of each, and whether its planner has the cost curve.
CONTINUOUS: Mapping[str, tuple[Policy, bool]] = {
    AUTO: ("auto", True),
    OURS: ("shortest", True),
    FIFO: ("fifo", False),
}
NAMES = {
    AUTO: "stepfuse, auto",
    OURS: "stepfuse, shortest first",
    FIFO: "stepfuse, fifo, full rows",
    STATIC: "static batches",
    ONE: "one at a time",
    DIFFUSERS: "diffusers, queued",
}


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        steps: Least and most steps of a request.
        requests: Of each load but the claimed one.
        claimed_requests: Of the claimed load.
        warm: Requests at the beginning of a load that are run and not counted.
        capacity_requests: Of the burst that measures the capacity.
        alone_requests: Of these, the ones that are also timed alone.
        simulated_requests: Of the burst that gives a system's own capacity in simulation.
        peer_steps: Steps of the requests that measure the peer's cost curve.
        repeats: Of these requests.
        curves: Cost curves that are measured, of which the median one is taken.
    """

    steps: tuple[int, int]
    requests: int
    claimed_requests: int
    warm: int
    capacity_requests: int
    alone_requests: int
    simulated_requests: int
    peer_steps: int
    repeats: int
    curves: int


FULL = Size(
    steps=STEPS,
    requests=1000,
    claimed_requests=2000,
    warm=100,
    capacity_requests=256,
    alone_requests=16,
    simulated_requests=8192,
    peer_steps=50,
    repeats=5,
    curves=3,
)
QUICK = Size(
    steps=(2, 6),
    requests=6,
    claimed_requests=6,
    warm=1,
    capacity_requests=6,
    alone_requests=2,
    simulated_requests=256,
    peer_steps=4,
    repeats=1,
    curves=1,
)


def now_text() -> str:
    """Date and time, as the report writes them."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


@dataclass(frozen=True)
class Setting:
    """What all pieces of a run share.

    Attributes:
        size: How much is measured.
        bundle: Name or path of the model.
        max_rows: Most rows of a forward.
        threads: Of the network.
        seed: Of the load.
        cost: Cost curve of the engine, measured.
        diffusers_cost: The same for a step of the peer, with all that it does between two forwards.
        capacity: Requests a second of the saturated engine at full rows, first come, first served.
        capacity_over_curve: The same over what the curve gives it: far from 1, the machine was busy.
        alone_over_curve: Measured latency of a lone request over what the curve gives it, the median of some.
        static_cap: Rows of the static batches that did best in simulation at the claimed load.
        date: When this was measured.
        load_average: Of the machine, before.
    """

    size: Size
    bundle: str
    max_rows: int
    threads: int
    seed: int
    cost: CostCurve
    diffusers_cost: CostCurve
    capacity: float
    capacity_over_curve: float
    alone_over_curve: float
    static_cap: int
    date: str
    load_average: float


def serving_of(system: str, max_rows: int, count: int) -> Serving:
    """How requests share this system's engine; its queue holds all of them."""
    policy, _ = CONTINUOUS.get(system, CONTINUOUS[FIFO])
    return Serving(max_rows=max_rows, policy=policy, max_queue=count)


def measure_setting(size: Size, bundle: str, max_rows: int, threads: int, seed: int) -> Setting:
    """Measures what all pieces share."""
    load_average, date = os.getloadavg()[0], now_text()
    say("measuring capacity and cost, and whether diffusers gives the same images")
    peer, mix = Diffusers(bundle, threads), burst(size.capacity_requests, seed, size.steps)
    with new_engine(bundle, threads, serving_of(FIFO, max_rows, size.capacity_requests)) as engine:
        peer.check(engine)
        began = time.perf_counter()
        sample_all(engine, [asked.request() for asked in mix.asked])
        capacity = len(mix.asked) / (time.perf_counter() - began)
        cost = median_cost([engine.calibrate() for _ in range(size.curves)])
        alone = []
        for asked in mix.asked[: size.alone_requests]:
            began = time.perf_counter()
            sample_all(engine, [asked.request()])
            alone.append((time.perf_counter() - began) / asked.alone(cost))
    claimed = poisson(size.claimed_requests, CLAIMED_LOAD * capacity, seed, size.steps)
    batches = {cap: static_batches(claimed, cost, cap) for cap in STATIC_CAPS}
    means = {cap: summary(claimed, outcome, cost, size.warm)["mean_s"] for cap, outcome in batches.items()}
    best = min((cap for cap in means if cap <= max_rows), key=lambda cap: means[cap], default=max_rows)
    simulated = replayed(mix, cost, serving_of(FIFO, max_rows, len(mix.at)), planned=None)[0].finished.max()
    return Setting(
        size,
        bundle,
        max_rows,
        threads,
        seed,
        cost,
        peer.cost(size.repeats, size.peer_steps),
        capacity,
        capacity_over_curve=capacity * float(simulated) / len(mix.at),
        alone_over_curve=float(np.median(alone)),
        static_cap=best,
        date=date,
        load_average=load_average,
    )


def cap_of(system: str, setting: Setting) -> int:
    """Rows of a static batch: of ``static`` as many as the engine's, of ``static-16`` 16; 0: one request."""
    return int(system.partition("-")[2] or setting.max_rows) if system.startswith(STATIC) else 0


def name_of(system: str, setting: Setting) -> str:
    """For a reader."""
    return f"{NAMES[STATIC]}, {cap_of(system, setting)}" if system.startswith(STATIC) else NAMES[system]


def predicted(system: str, load: Load, setting: Setting) -> Outcome:
    """What the simulation makes of the same arrivals on the measured curve."""
    if system in CONTINUOUS:
        serving, (_, calibrated) = serving_of(system, setting.max_rows, len(load.at)), CONTINUOUS[system]
        return replayed(load, setting.cost, serving, planned=setting.cost if calibrated else None)[0]
    cost = setting.diffusers_cost if system == DIFFUSERS else setting.cost
    return static_batches(load, cost, cap_of(system, setting))


def demand(system: str, rate: float, setting: Setting) -> float:
    """The arrival rate over the system's own capacity, that of a simulated burst of the same mix."""
    mix = burst(setting.size.simulated_requests, setting.seed, setting.size.steps)
    return rate * float(predicted(system, mix, setting).finished.max()) / len(mix.at)


def measure(system: str, load: Load, setting: Setting, label: str) -> tuple[Run, dict[str, float]]:
    """Runs a system; returns the run and what else is known of it."""
    run = Run.of(load, label)
    if system == DIFFUSERS:
        peer = Diffusers(setting.bundle, setting.threads)
        peer.cost(1, setting.size.peer_steps)
        run.queued(lambda batch: [peer(load.asked[i]) for i in batch], 0)
        run.forwards, run.passes = sum(asked.steps for asked in load.asked), run.held
        return run, {}
    with new_engine(setting.bundle, setting.threads, serving_of(system, setting.max_rows, len(load.at))) as engine:
        if system in CONTINUOUS and CONTINUOUS[system][1]:
            engine.calibrate(setting.cost)  # the simulation's planner has the same
        before = engine.stats()
        if system in CONTINUOUS:
            run.continuous(engine)
        else:
            requests = [asked.request() for asked in load.asked]
            run.queued(lambda batch: sample_all(engine, [requests[i] for i in batch]), cap_of(system, setting))
        after = engine.stats()
    run.forwards = after.forwards - before.forwards
    run.passes = after.network_passes - before.network_passes
    network_seconds = after.network_seconds - before.network_seconds
    outside = after.step_seconds - before.step_seconds + after.loop_seconds - before.loop_seconds
    if system in CONTINUOUS:
        run.busy, run.held = network_seconds + outside, run.passes + after.padded_rows - before.padded_rows
    curve = setting.cost.fixed * run.forwards + setting.cost.row * run.passes
    return run, {
        "network_over_curve": network_seconds / curve,
        "us_a_forward_outside_the_network": 1e6 * outside / run.forwards,
    }
