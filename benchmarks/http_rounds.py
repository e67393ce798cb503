"""Open-loop load in rounds: each round meets every system with the same arrivals, in another order.

What a round gave is kept in a file of its own, so that a run that was stopped goes on where it was.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from http_client import Got, at_once, open_loop
from http_processes import BATCHED, LOCKED, NAMES, OURS, RAY, Service
from http_requests import STEPS, arrivals, expected, picture, same
from load import say

import stepfuse as sf

#: More of our command line: with costs the default policy knows how long requests are.
OPTIONS = {OURS: ("--calibrate",)}


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        bundle: Embedded model or bundle folder.
        threads: Of each network; 0 is one a core.
        systems: Keys of ``NAMES``.
        loads: Arrival rates, as fractions of the capacity of ``ours``.
        rounds: Of every system.
        seconds: Of each load in a round.
        burst: Requests that measure a capacity.
        connections: That send them.
        steps: Numbers of steps of the requests.
    """

    bundle: str
    threads: int
    systems: tuple[str, ...] = (OURS, LOCKED, BATCHED, RAY)
    loads: tuple[float, ...] = (0.5, 0.8)
    rounds: int = 3
    seconds: float = 25.0
    burst: int = 160
    connections: int = 32
    steps: tuple[int, ...] = STEPS


def run(plan: Plan, folder: Path) -> None:
    """Measures what the folder does not have yet.

    Raises:
        RuntimeError: If a system draws another picture than ``Engine.sample``.
        ValueError: If the folder holds a run of another plan.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _same_plan(plan, folder)
    asked = arrivals(1, 1.0, 0, plan.steps).asked[0]
    with sf.Engine.load(plan.bundle, threads=plan.threads) as engine:
        wanted = expected(engine, asked)
    if not _capacity_path(folder, OURS).exists():  # rates are fractions of it
        with _started(OURS, plan) as service:
            _measure_capacity(plan, folder, OURS, service)
    for number in range(plan.rounds):
        order = list(plan.systems)
        random.Random(number).shuffle(order)
        for system in order:
            missing = [load for load in plan.loads if not _cell(folder, number, load, system).exists()]
            if not missing:
                continue
            with _started(system, plan) as service:
                [first, *_] = asyncio.run(at_once(service.port, [asked] * 4, 2))
                if first.answer is None or not same(picture(first.answer), wanted):
                    raise RuntimeError(f"{NAMES[system]} must draw what Engine.sample draws: {first.error}")
                if not _capacity_path(folder, system).exists():
                    _measure_capacity(plan, folder, system, service)
                for load in missing:
                    _measure(plan, folder, number, load, system, service)


def results(plan: Plan, folder: Path) -> list[dict[str, Any]]:
    """A row a load and system of what there is: medians over rounds."""
    found = []
    for load in plan.loads:
        for system in plan.systems:
            cells = [_cell(folder, number, load, system) for number in range(plan.rounds)]
            kept = [json.loads(cell.read_text()) for cell in cells if cell.exists()]
            if kept:
                rate = load * _capacity(folder, OURS)
                row = {"part": "load", "load": load, "system": system, "name": NAMES[system], "rounds": len(kept)}
                row |= {"arrivals_per_s": rate, "demand": rate / _capacity(folder, system)}
                found.append(row | _medians([summary(one) for one in kept]))
    return found


def summary(cell: dict[str, Any]) -> dict[str, Any]:
    """Figures of a round; latencies are those of the requests that got a picture, from when they were due."""
    got = [Got(**one) for one in cell["got"]]
    seconds = np.array([one.seconds for one in got if not one.error])
    previews = [one.preview for one in got if one.preview is not None]
    late = [1e3 * one.late for one in got]
    found = {
        "requests": len(got),
        "errors": sum(bool(one.error) for one in got),
        "images_per_s": len(seconds) / cell["wall_s"],
        "late_ms_p99": float(np.percentile(late, 99)),
        "client_processor_ms": 1e3 * cell["client_processor_s"] / len(got),
        "client_share_of_a_core": cell["client_processor_s"] / cell["wall_s"],
    }
    if len(seconds):
        found |= {"mean_s": float(seconds.mean())}
        found |= {f"p{p}_s": float(np.percentile(seconds, p)) for p in (50, 95, 99)}
    if previews:
        found |= {f"preview_p{p}_s": float(np.percentile(previews, p)) for p in (50, 95)}
    return found


def ratios(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Ours over each peer, a row a load."""
    rows = []
    for load in dict.fromkeys(row["load"] for row in found):
        at = {row["system"]: row for row in found if row["load"] == load}
        ours = at.pop(OURS, None)
        figures = ("mean_s", "p50_s", "p95_s", "p99_s", "images_per_s")
        if ours and "mean_s" in ours:
            over = {
                peer: {name: ours[name] / row[name] for name in figures if row.get(name)} for peer, row in at.items()
            }
            rows.append({"part": "ours_over", "load": load, "ours_over": over})
    return rows


def _medians(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The median of each figure, errors and requests of all; and the spread of the mean latency."""
    found = {
        name: float(np.median([one[name] for one in rounds if name in one]))
        for name in dict.fromkeys(name for one in rounds for name in one)
    }
    found |= {name: sum(one[name] for one in rounds) for name in ("requests", "errors")}
    if means := [one["mean_s"] for one in rounds if "mean_s" in one]:
        found["mean_s_range"] = [min(means), max(means)]  # type: ignore[assignment]
    return found


def _measure(plan: Plan, folder: Path, number: int, load: float, system: str, service: Service) -> None:
    rate = load * _capacity(folder, OURS)
    drawn = arrivals(max(4, round(rate * plan.seconds)), rate, number, plan.steps)
    say(f"round {number}, load {load:g}, {NAMES[system]}: {len(drawn.asked)} requests over {drawn.at[-1]:.0f} s")
    facts = {"load_average": os.getloadavg()[0]}
    processor, server, began = time.process_time(), service.processor_seconds(), time.perf_counter()
    got = asyncio.run(open_loop(service.port, drawn))
    facts |= {
        "wall_s": time.perf_counter() - began,
        "client_processor_s": time.process_time() - processor,
        "server_processor_s": service.processor_seconds() - server,
    }
    path = _cell(folder, number, load, system)
    path.write_text(json.dumps(facts | {"got": [one.kept() for one in got]}) + "\n")
    say(f"    mean {np.mean([one.seconds for one in got]):.3f} s, {sum(bool(one.error) for one in got)} errors")


def _measure_capacity(plan: Plan, folder: Path, system: str, service: Service) -> None:
    """Requests a second of a system with many clients at once."""
    asked = arrivals(plan.burst, 1.0, 0, plan.steps).asked
    asyncio.run(at_once(service.port, asked[:4], 2))
    began = time.perf_counter()
    got = asyncio.run(at_once(service.port, asked, plan.connections))
    capacity = len(got) / (time.perf_counter() - began)
    if failed := [one.error for one in got if one.error]:
        raise RuntimeError(f"{NAMES[system]} must answer {len(got)} requests, failed: {failed[:3]}")
    _capacity_path(folder, system).write_text(json.dumps({"requests_per_s": capacity}) + "\n")
    say(f"{NAMES[system]}: {capacity:.1f} requests/s at most, {plan.connections} at once")


def _started(system: str, plan: Plan) -> Service:
    return Service(system, plan.bundle, threads=plan.threads, options=OPTIONS.get(system, ()))


def _capacity(folder: Path, system: str) -> float:
    return float(json.loads(_capacity_path(folder, system).read_text())["requests_per_s"])


def _capacity_path(folder: Path, system: str) -> Path:
    return folder / f"capacity-{system}.json"


def _cell(folder: Path, number: int, load: float, system: str) -> Path:
    return folder / f"load-{number}-{load:g}-{system}.json"


def _same_plan(plan: Plan, folder: Path) -> None:
    """Refuses to add rounds of other requests to those of before."""
    path, given = folder / "plan.json", json.loads(json.dumps(asdict(plan)))
    for free in ("systems", "rounds", "loads"):
        given.pop(free)
    if not path.exists():
        path.write_text(json.dumps(given, indent=2) + "\n")
    elif (kept := json.loads(path.read_text())) != given:
        raise ValueError(f"{folder} must hold a run of {given}, got {kept}: --fresh measures anew")
