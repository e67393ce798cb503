"""Timing on a GPU: events around each call, caches flushed before it, contenders in a shuffled order each round."""

from __future__ import annotations

import math
import random
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch

FLUSHED_BYTES = 256 << 20  # several times the second-level cache of any GPU so far
WARM_UPS = 3
LEAST_ROUNDS = 3

Work = Callable[[], object]
AnyWork = TypeVar("AnyWork", bound=Callable[[], object])


class Clock:
    """Takes times. ``flush`` writes a buffer that fills the second-level cache before each call."""

    def __init__(self, *, flush: bool = True) -> None:
        self._buffer = torch.empty(FLUSHED_BYTES, dtype=torch.int8, device="cuda") if flush else None

    def device_seconds(self, work: Work, stream: torch.cuda.Stream | None = None) -> float:
        """From the first of a call's work on the device to its last, with what it waits for the host in between."""
        stream = stream or torch.cuda.current_stream()
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        with torch.cuda.stream(stream):
            if self._buffer is not None:
                self._buffer.zero_()
            first.record()
            work()
            last.record()
        last.synchronize()
        return first.elapsed_time(last) * 1e-3

    def wall_seconds(self, work: Work) -> float:
        """As a caller sees it: from the call until the device is done."""
        if self._buffer is not None:
            self._buffer.zero_()
        torch.cuda.synchronize()
        began = time.perf_counter()
        work()
        torch.cuda.synchronize()
        return time.perf_counter() - began


def in_turn(
    contenders: Mapping[str, AnyWork],
    seconds: Callable[[AnyWork], float],
    *,
    rounds: int,
    calls: Mapping[str, float] | None = None,
    warm_ups: int = WARM_UPS,
    budget: float = math.inf,
) -> dict[str, list[float]]:
    """Times every contender once a round.

    Args:
        contenders: By name.
        seconds: Times one call.
        rounds: Samples of each; sample i of all of them was taken in round i.
        calls: How many times a contender does the work in one call, where it is not once.
        warm_ups: Calls of each before.
        budget: Seconds of rounds behind which no further one begins, though three are done in any case.

    Returns:
        Seconds by contender, a sample a round.
    """
    for work in contenders.values():
        for _ in range(warm_ups):
            work()
    torch.cuda.synchronize()
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    order, shuffle = list(contenders), random.Random(0).shuffle
    until = time.monotonic() + budget
    for done in range(rounds):
        if done >= LEAST_ROUNDS and time.monotonic() >= until:
            break
        shuffle(order)
        for name in order:
            samples[name].append(seconds(contenders[name]) / (calls or {}).get(name, 1))
    return samples


def graph_of(work: Work, times: int = 1) -> torch.cuda.CUDAGraph:
    """The same work ``times`` times in a row as one graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(times):
            work()
    return graph


def machine() -> dict[str, Any]:
    """The GPU that figures were taken on, its clocks now, and what drives it."""
    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        **clocks(),
    }


def clocks() -> dict[str, str]:
    """Driver, clocks, temperature and power as nvidia-smi reads them; empty where there is none."""
    fields = ("driver_version", "clocks.sm", "clocks.mem", "temperature.gpu", "power.draw")
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader", "--id=0"]
    try:
        line = subprocess.run(command, check=True, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return {}
    return parse_fields(fields, line)


def parse_fields(fields: Sequence[str], line: str) -> dict[str, str]:
    """A line of nvidia-smi's by field; empty if it is not of these."""
    values = [value.strip() for value in line.split(",")]
    return dict(zip(fields, values, strict=True)) if len(values) == len(fields) else {}
