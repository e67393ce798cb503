"""Hundreds of connections held, thousands of requests of clients of all manners: what is lost, and what memory does."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from http_processes import OURS, Service
from http_requests import GENERATIONS, Levels, arrivals, expected
from http_stress_clients import DRAW, REFUSED, RIGHT, SHARES, SLOW, STREAM, VANISH, Client
from load import Asked, say
from prometheus_client.parser import text_string_to_metric_families

import stepfuse as sf

STEPS = (2, 3, 4, 6)
_SAMPLED_SECONDS, _SAID_SECONDS = 0.5, 15.0
_LONGEST_END = 60.0

_STATUSES, _OUTCOMES = ("200", "400", "499", "5xx"), ("finished", "failed", "cancelled", "expired")
_COUNTED = {
    "requests_submitted_total": "submitted",
    "requests_waiting": "waiting",
    "requests_running": "running",
    "http_requests_in_flight": "in_flight",
}

Job = tuple[str, Asked, Levels]
Outcomes = Counter[tuple[str, str]]


@dataclass
class Watched:
    """What was seen of the service meanwhile, a sample each half a second.

    Attributes:
        answered: Requests that had ended.
        memory: Resident megabytes.
        files: Open files, connections among them.
    """

    answered: list[int] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    files: list[int] = field(default_factory=list)


def jobs_of(engine: sf.Engine, count: int, *, different: int = 48) -> list[Job]:
    """Requests, each with its kind and the picture that ``Engine.sample`` draws.

    Args:
        engine: Of the model that the service has.
        count: Requests.
        different: Pictures, of which each is asked for many times.
    """
    drawn = [(one, expected(engine, one)) for one in arrivals(different, 1.0, 0, STEPS).asked]
    rng = random.Random(0)
    kinds = rng.choices(list(SHARES), list(SHARES.values()), k=count)
    return [(kind, *rng.choice(drawn)) for kind in kinds]


async def work(port: int, jobs: Sequence[Job], connections: int, into: Outcomes) -> None:
    """Has clients, each with a connection of its own that it keeps, do the jobs; all connect before the first begins.

    Args:
        port: Of the service.
        jobs: What is done, in the order in which clients become free.
        connections: Clients.
        into: Counts how often each (kind, outcome) has come.
    """
    waiting: Iterator[Job] = iter(jobs)
    clients = [Client(port, seed) for seed in range(connections)]
    for client in clients:
        await client.connect()

    async def one(client: Client) -> None:
        for kind, asked, wanted in waiting:
            into[kind, await client.run(kind, asked, wanted)] += 1

    try:
        await asyncio.gather(*map(one, clients))
    finally:
        for client in clients:
            client.end()


def stress(bundle: str, threads: int, requests: int, connections: int) -> dict[str, Any]:
    """A row: outcomes by kind, what the service counted, and its memory."""
    with sf.Engine.load(bundle, threads=threads) as engine:
        jobs = jobs_of(engine, requests)
    with Service(OURS, bundle, threads=threads) as service:
        before = service.files()
        began = time.perf_counter()
        outcomes, watched = asyncio.run(_watched_work(service, jobs, connections))
        seconds = time.perf_counter() - began
        counted = at_rest(service)
    first = len(watched.memory) // 5  # allocators have warmed up
    return {
        "part": "stress",
        "requests": requests,
        "connections": connections,
        "connections_held": max(watched.files) - before,
        "seconds": seconds,
        "requests_per_s": requests / seconds,
        "outcomes": {kind: sum(n for (one, _), n in outcomes.items() if one == kind) for kind in SHARES},
        "lost": sum(n for (_, outcome), n in outcomes.items() if outcome != RIGHT),
        "wrong": {f"{kind}: {outcome}"[:200]: n for (kind, outcome), n in outcomes.items() if outcome != RIGHT},
        "counters": counted,
        "counters_differ": differences(outcomes, counted),
        "memory_MB": {"after_a_fifth": watched.memory[first], "end": watched.memory[-1], "most": max(watched.memory)},
        "memory_MB_per_1000_requests": slope(watched),
    }


def differences(outcomes: Mapping[tuple[str, str], int], counted: Mapping[str, float]) -> list[str]:
    """Where the service's counters do not agree with what the clients got; a line each.

    What came of requests whose client vanished is not known: answered, withdrawn or never read.
    """
    right = Counter({kind: n for (kind, outcome), n in outcomes.items() if outcome == RIGHT})
    drawn = right[DRAW] + right[STREAM] + right[SLOW]
    vanished, finished = right[VANISH], counted["finished"]
    rules = {
        "each well-behaved client's picture must be answered with 200": drawn <= counted["200"] <= drawn + vanished,
        "each request that is refused must be answered with 400": counted["400"] == right[REFUSED],
        "no request may fail": counted["failed"] == counted["5xx"] == counted["expired"] == 0,
        "each picture must be drawn once": drawn <= finished <= drawn + vanished,
        "each request that was queued must have ended": counted["submitted"] == finished + counted["cancelled"],
        "nothing may be left": counted["waiting"] == counted["running"] == 0,
    }
    return [f"{rule}: clients {dict(right)}, service {dict(counted)}" for rule, holds in rules.items() if not holds]


def at_rest(service: Service) -> dict[str, float]:
    """The service's counters, once it works on nothing; after a minute as they are."""
    end = time.monotonic() + _LONGEST_END
    while True:
        counted = counters(service.get("/metrics")[1].decode())
        if counted["waiting"] + counted["running"] + counted["in_flight"] <= 1 or time.monotonic() > end:
            return counted  # the one in flight is that which asks
        time.sleep(0.1)


def counters(text: str) -> dict[str, float]:
    """What the comparison needs of Prometheus' text."""
    found: Counter[str] = Counter()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            name = sample.name.removeprefix("stepfuse_")
            if name == "http_requests_total" and sample.labels["route"] == GENERATIONS:
                status = sample.labels["status"]
                found["5xx" if status.startswith("5") else status] += sample.value
            elif name == "requests_total":
                found[sample.labels["outcome"]] += sample.value
            elif name in _COUNTED:
                found[_COUNTED[name]] += sample.value
    return {name: float(found[name]) for name in (*_STATUSES, *_OUTCOMES, *_COUNTED.values())}


def slope(watched: Watched) -> float:
    """Megabytes that a thousand requests added in the second half: the line through the samples of least squares."""
    half = watched.answered[-1] / 2
    points = [(n, mb) for n, mb in zip(watched.answered, watched.memory, strict=True) if n >= half]
    if len({n for n, _ in points}) < 2:
        return 0.0
    return 1e3 * float(np.polyfit(*np.array(points).T, 1)[0])


async def _watched_work(service: Service, jobs: Sequence[Job], connections: int) -> tuple[Outcomes, Watched]:
    watched, outcomes = Watched(), Counter[tuple[str, str]]()
    task = asyncio.create_task(work(service.port, jobs, connections, outcomes))
    said = time.monotonic()
    while not task.done():
        await asyncio.wait({task}, timeout=_SAMPLED_SECONDS)
        watched.answered.append(outcomes.total())
        watched.memory.append(service.memory())
        watched.files.append(service.files())
        if time.monotonic() - said > _SAID_SECONDS:
            said = time.monotonic()
            say(f"{outcomes.total()} of {len(jobs)} requests have ended, {watched.memory[-1]:.0f} MB")
    await task
    return outcomes, watched
