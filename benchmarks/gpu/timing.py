"""Timing on a GPU: events around work that is enqueued while the device sleeps, caches flushed, contenders in turn."""

from __future__ import annotations

import math
import random
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import torch

FLUSHED_BYTES = 256 << 20  # several times the second-level cache of any GPU so far
WARM_UPS = 3
LEAST_ROUNDS = 3
LOAD_SECONDS = 0.3  # until a GPU that was idle has its clocks

_AHEAD_SECONDS, _MOST_AHEAD_SECONDS = 1e-3, 0.25  # that the device sleeps before what is timed
_CYCLES_A_SECOND = 2e9  # about: a sleep is counted in cycles

Work = Callable[[], object]
AnyWork = TypeVar("AnyWork", bound=Callable[[], object])


class Clock:
    """Takes times. ``flush`` reads a buffer that fills the second-level cache before each call.

    It is read, not written: what is written would have to leave the cache in the time that is taken.
    """

    def __init__(self, *, flush: bool = True) -> None:
        self._buffer = torch.zeros(FLUSHED_BYTES // 4, device="cuda") if flush else None
        self._ahead = _AHEAD_SECONDS

    def device_seconds(self, work: Work, stream: torch.cuda.Stream | None = None) -> float:
        """From the first of a call's work on the device to its last.

        The device sleeps until all of it is enqueued, so that it does not wait for the host in between: a launch from
        Python takes longer than a step. Work that itself waits for the device is timed as it is.
        """
        stream = stream or torch.cuda.current_stream()
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        while True:
            with torch.cuda.stream(stream):
                self._flush()
                if self._ahead <= _MOST_AHEAD_SECONDS:
                    torch.cuda._sleep(int(self._ahead * _CYCLES_A_SECOND))
                first.record()
                began = time.perf_counter()
                work()
                enqueued = time.perf_counter() - began
                last.record()
            last.synchronize()
            if enqueued < self._ahead or self._ahead > _MOST_AHEAD_SECONDS:
                return first.elapsed_time(last) * 1e-3
            self._ahead = 2 * enqueued

    def _flush(self) -> None:
        if self._buffer is not None:
            self._buffer.sum()

    def wall_seconds(self, work: Work) -> float:
        """As a caller sees it: from the call until the device is done."""
        self._flush()
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


def load(seconds: float = LOAD_SECONDS) -> None:
    """Keeps the device busy: an idle one takes a while until it has its clocks."""
    a = torch.ones(2048, 2048, device="cuda")
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for _ in range(8):
            a @ a
        torch.cuda.synchronize()


class ClockSamples:
    """The clocks while work goes on, five times a second, by nvidia-smi's own process; none where there is none."""

    FIELDS = ("clocks.sm", "clocks.mem", "temperature.gpu", "power.draw")

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile("w+")  # noqa: SIM115 - lives as long as this
        query = [f"--query-gpu={','.join(self.FIELDS)}", "--format=csv,noheader,nounits", "--id=0", "--loop-ms=200"]
        self._process: subprocess.Popen[bytes] | None = None
        with suppress(OSError):
            self._process = subprocess.Popen(["nvidia-smi", *query], stdout=self._file, stderr=subprocess.DEVNULL)

    def summary(self) -> dict[str, dict[str, float]]:
        """Least, median and most of each field so far; empty where there is none."""
        self._file.seek(0)
        return summary_of(self.FIELDS, self._file.read().splitlines())

    def end(self) -> None:
        """Takes no more."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None


def summary_of(fields: Sequence[str], lines: Sequence[str]) -> dict[str, dict[str, float]]:
    """Least, median and most of each field of nvidia-smi's lines; those that are not numbers are left out."""
    columns: dict[str, list[float]] = {field: [] for field in fields}
    for line in lines:
        for field, value in parse_fields(fields, line).items():
            with suppress(ValueError):
                columns[field].append(float(value))
    return {
        field: {"least": min(values), "median": statistics.median(values), "most": max(values)}
        for field, values in columns.items()
        if values
    }


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
