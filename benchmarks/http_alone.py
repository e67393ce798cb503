"""One client: what HTTP adds to ``engine.submit``, and how long a service takes from its start until it is ready."""

from __future__ import annotations

import base64
import http.client
import io
import json
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from http_processes import NAMES, OURS, Service
from http_requests import GENERATIONS, body, expected, picture, same
from load import Asked
from PIL import Image

import stepfuse as sf

HTTP, ENGINE, EMPTY = "over HTTP", "engine.submit and the PNG", "GET /health"
#: A short request, whose own time hides little, and one of usual length.
CASES = {"5 steps": Asked("dpmpp_2m", 5, 1, 7, 0), "20 guided steps": Asked("dpmpp_2m", 20, 2, 7, 0)}
_WARM = 2
_BLOCK = 10  # requests one after another, as a client sends them
_SETTLE_SECONDS = 0.02  # between two blocks: the other side's threads stop waiting actively


class Client:
    """Python's own HTTP client on a connection that is kept, as cheap as there is one."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def draw(self, asked: Asked) -> dict[str, Any]:
        """The answer to a request."""
        text = json.dumps(body(asked))
        self._connection.request("POST", GENERATIONS, text, {"Content-Type": "application/json"})
        found: dict[str, Any] = json.loads(self._read())
        return found

    def health(self) -> None:
        """Asks for nothing: what the client and the framework take."""
        self._connection.request("GET", "/health")
        self._read()

    def _read(self) -> bytes:
        answer = self._connection.getresponse()
        data = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"the service must answer with 200, got {answer.status}: {data!r:.300}")
        return data


def drawn_in_process(engine: sf.Engine, asked: Asked) -> str:
    """The same picture's file in base64, without a service and without a word of how it was drawn."""
    sample = engine.submit(asked.request()).result()
    levels = ((np.clip(sample, -1, 1) + 1) * 127.5).round().astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(levels[0] if len(levels) == 1 else levels.transpose(1, 2, 0)).save(
        file, format="PNG", optimize=True
    )
    return base64.b64encode(file.getvalue()).decode()


def overhead(bundle: str, threads: int, rounds: int) -> list[dict[str, Any]]:
    """A row a case: milliseconds of both ways, in blocks in turn, and of their difference, block by block.

    Raises:
        RuntimeError: If the service draws another picture than ``Engine.sample``.
    """
    found = []
    with Service(OURS, bundle, threads=threads) as service, sf.Engine.load(bundle, threads=threads) as engine:
        client = Client(service.port)
        for case, asked in CASES.items():
            if not same(picture(client.draw(asked)), expected(engine, asked)):
                raise RuntimeError(f"{case}: the service must draw what Engine.sample draws")
            ways: dict[str, Callable[[Asked], object]] = {
                HTTP: client.draw,
                ENGINE: lambda asked: drawn_in_process(engine, asked),
                EMPTY: lambda _: client.health(),
            }
            taken = _in_turn(ways, asked, rounds)  # medians of blocks
            difference = np.subtract(taken[HTTP], taken[ENGINE])
            found.append(
                {
                    "part": "overhead",
                    "case": case,
                    "rounds": rounds,
                    "http_ms": _milliseconds(taken[HTTP]),
                    "engine_ms": _milliseconds(taken[ENGINE]),
                    "overhead_ms": _milliseconds(difference),
                    "empty_request_ms": _milliseconds(taken[EMPTY]),
                }
            )
    return found


def start(systems: Sequence[str], bundle: str, threads: int, rounds: int) -> list[dict[str, Any]]:
    """A row a system: seconds from the start of the process until ``/ready`` answers 200, in turn."""
    taken: dict[str, list[float]] = {system: [] for system in systems}
    for _ in range(rounds):
        for system, seconds in taken.items():
            with Service(system, bundle, threads=threads) as service:
                seconds.append(service.seconds)
    return [
        {
            "part": "start",
            "system": system,
            "name": NAMES[system],
            "rounds": rounds,
            "seconds": {f"p{p}": float(np.percentile(seconds, p)) for p in (20, 50, 80)},
        }
        for system, seconds in taken.items()
    ]


def _in_turn(ways: dict[str, Callable[[Asked], object]], asked: Asked, rounds: int) -> dict[str, list[float]]:
    """The median of each block's requests but the first, which finds the way cold."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    order, shuffle = list(ways), random.Random(0).shuffle
    for number in range(-_WARM, rounds):
        shuffle(order)
        for name in order:
            time.sleep(_SETTLE_SECONDS)
            seconds = [_timed(ways[name], asked) for _ in range(1 + _BLOCK)]
            if number >= 0:
                taken[name].append(float(np.median(seconds[1:])))
    return taken


def _timed(way: Callable[[Asked], object], asked: Asked) -> float:
    began = time.perf_counter()
    way(asked)
    return time.perf_counter() - began


def _milliseconds(seconds: Any) -> dict[str, float]:
    return {f"p{p}": 1e3 * float(np.percentile(seconds, p)) for p in (20, 50, 80, 95)}
