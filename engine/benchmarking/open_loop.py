"""Requests that arrive at random, whether or not those before were answered: latency at a given rate."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

import numpy as np

from stepfuse.benchmarking.networks import Opened
from stepfuse.benchmarking.result import Configuration, Load
from stepfuse.bundle.bundle import Bundle
from stepfuse.engine import Engine
from stepfuse.errors import QueueFull
from stepfuse.requests.request import Request
from stepfuse.serving.config import CostCurve
from stepfuse.serving.progress import ProgressBar

_LEAST = 20  # requests, however low the rate


def measure_loads(
    bundle: Bundle,
    networks: Sequence[Opened],
    costs: Mapping[Configuration, CostCurve],
    rates: Sequence[float],
    steps: int,
    seconds: float,
    *,
    progress: bool = False,
) -> list[Load]:
    """Each network at each rate, in turn by rate; the engine's own settings, calibrated with what was measured.

    Args:
        bundle: The model.
        networks: What runs it.
        costs: What their forwards take.
        rates: Requests a second.
        steps: Of each request, which is not guided.
        seconds: How long requests arrive, at least twenty of them, and how long after the last one they are waited for.
        progress: Whether a bar is shown.

    Raises:
        DenoiserError: If the network fails.
    """
    found = []
    bar = (
        ProgressBar(len(rates) * len(networks), "requests that arrive at random", unit="loads")
        if progress and rates
        else None
    )
    if bar is not None:
        bar.start()
    try:
        for rate in rates:
            for one in networks:
                with Engine.load(bundle, session=one.network) as engine:
                    engine.calibrate(costs[one.configuration])
                    engine.sample(engine.serving.row_limit, steps=1, guidance_scale=1.0, seed=0)  # what is made once
                    arrivals = poisson(rate, max(_LEAST, round(rate * seconds)))
                    load = measure_load(engine, one.configuration, rate, arrivals, steps, patience=seconds)
                    found.append(load)
                if bar is not None:
                    bar.update(len(found), len(rates) * len(networks))
    finally:
        if bar is not None:
            bar.stop()
    return found


def poisson(rate: float, count: int) -> list[float]:
    """Times of arrival in seconds; another rate stretches the same ones."""
    gaps = np.random.default_rng(0).exponential(size=count)
    return list((np.cumsum(gaps) / rate).tolist())


def measure_load(
    engine: Engine,
    configuration: Configuration,
    rate: float,
    arrivals: Sequence[float],
    steps: int,
    *,
    patience: float,
) -> Load:
    """Submits a request at each time of arrival, and gives up those that have no answer long after the last.

    A latency begins at the time of arrival, not when this thread came to submit it: what delays the one is the other's
    wait, too.

    Args:
        engine: What draws.
        configuration: What runs its network.
        rate: Of ``arrivals``.
        arrivals: Seconds from now, ascending.
        steps: Of each request.
        patience: Seconds after the last arrival until which an answer counts.

    Raises:
        DenoiserError: If the network fails.
    """
    ended: dict[int, float] = {}
    all_ended = threading.Semaphore(0)
    submitted: dict[int, Future[Any]] = {}
    began = time.perf_counter()

    def note(index: int, _: Future[Any]) -> None:
        ended[index] = time.perf_counter() - began
        all_ended.release()

    for index, at in enumerate(arrivals):
        if (early := at - (time.perf_counter() - began)) > 0:
            time.sleep(early)
        try:
            future = engine.submit(Request(seed=index, steps=steps, guidance_scale=1.0))
        except QueueFull:
            continue
        submitted[index] = future
        future.add_done_callback(partial(note, index))
    for _ in submitted:
        if not all_ended.acquire(timeout=max(0.0, arrivals[-1] + patience - (time.perf_counter() - began))):
            break
    answered = {index: future for index, future in submitted.items() if not future.cancel()}
    for future in answered.values():
        future.result()  # raises what the network has
    latencies = [ended[index] - arrivals[index] for index in answered]
    took = max((ended[index] for index in answered), default=math.inf) - arrivals[0]
    return Load(configuration, rate, steps, latencies, len(arrivals) - len(answered), len(answered) / took)
