"""Runs the benchmarks, each in a process of its own, and ends with the design's targets against the figures.

    python benchmarks/run.py           # all rounds of those that take minutes, on an idle machine
    python benchmarks/run.py --quick   # all, a few rounds each, two at a time: to see them work, not to quote

The exit status is 1 if a benchmark fails: if it exits with another status than 0, or if a result is missing, cannot be
read or has a figure that is not finite. A target that is missed is no failure: a benchmark is not a test.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from harness import arguments
from report import RESULTS, Target, targets_table
from rich.console import Console


@dataclass(frozen=True)
class Benchmark:
    """A script of this folder.

    Attributes:
        results: Names of the JSON files that it writes.
        runs_a_model: Whether it takes ``--bundle``.
        long: Whether it takes so long that it is run by itself, and here with ``--quick`` alone.
    """

    results: tuple[str, ...]
    runs_a_model: bool = False
    long: bool = False


BENCHMARKS = {
    "step_cpu": Benchmark(("step_cpu",)),
    "diffusers_step": Benchmark(("diffusers_step",)),
    "step_bandwidth": Benchmark(("step_bandwidth",)),
    "loop_overhead": Benchmark(("loop_overhead",)),
    "end_to_end": Benchmark(("end_to_end",), runs_a_model=True),
    "pipeline_latency": Benchmark(("pipeline_latency",)),
    "genai_latency": Benchmark(("genai_latency",), long=True),
    "threads": Benchmark(("threads",), runs_a_model=True),
    "cold_start": Benchmark(("cold_start",), runs_a_model=True),
    "simulate": Benchmark(("simulate",), runs_a_model=True),
    "policies": Benchmark(("policies",), long=True),
    "saturated": Benchmark(("guidance_interval", "deterministic"), runs_a_model=True, long=True),
    "mixed_load": Benchmark(("mixed_load",), runs_a_model=True, long=True),
    "http_load": Benchmark(("http_load",), runs_a_model=True, long=True),
    "quantized": Benchmark(("quantized",), long=True),
    "backends": Benchmark(("backends",), long=True),
    "export_memory": Benchmark(("export_memory",), long=True),
    "frontier_orderings": Benchmark(("frontier_orderings",), long=True),
    "frontier": Benchmark(("frontier",), long=True),
}


def run(name: str, quick: bool, bundle: str) -> tuple[list[Target], str | None]:
    """Runs one benchmark; returns its targets, and how it failed or None."""
    benchmark = BENCHMARKS[name]
    command = [sys.executable, str(Path(__file__).with_name(f"{name}.py"))]
    command += ["--quick"] * quick + ["--bundle", bundle] * benchmark.runs_a_model
    began = time.time()
    status = subprocess.run(command, check=False).returncode
    if status != 0:
        return [], f"exit status {status}"
    targets = []
    for result in benchmark.results:
        path = RESULTS / f"{result}{'.quick' if quick else ''}.json"
        try:
            targets += read_targets(path, began)
        except (OSError, ValueError, KeyError, TypeError) as error:
            return targets, f"{path.name}: {type(error).__name__}: {error}"
    return targets, None


def read_targets(path: Path, began: float) -> list[Target]:
    """The targets of a result that was written after ``began``.

    Raises:
        OSError: If there is no such file.
        ValueError: If it is older, is no JSON, has no results, or a number in it is not finite.
        KeyError: If it lacks what a report has.
        TypeError: If it is not made as a report is.
    """
    if path.stat().st_mtime < began - 1:  # a file system may count whole seconds
        raise ValueError("was not written by this run")
    document = json.loads(path.read_text())
    if not document["results"]:
        raise ValueError("has no results")
    require_finite(document["results"], "results")
    require_finite(document["targets"], "targets")
    names = [field.name for field in fields(Target)]
    return [Target(**{key: target[key] for key in names}) for target in document["targets"]]


def require_finite(value: Any, where: str) -> None:
    """Refuses a figure that is not finite anywhere in ``value``."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where} must be finite, got {value}")
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        require_finite(item, f"{where}[{key!r}]")


def main() -> int:
    """Runs all that are to be run, and returns the exit status."""
    options = arguments(__doc__, bundle=True)
    began = time.monotonic()
    console = Console(width=None if Console().is_terminal else 120)
    targets: list[Target] = []
    failures: dict[str, str] = {}
    names = [name for name, benchmark in BENCHMARKS.items() if options.quick or not benchmark.long]

    def timed(name: str) -> tuple[list[Target], str | None, float]:
        started = time.monotonic()
        return *run(name, options.quick, options.bundle), time.monotonic() - started

    with ThreadPoolExecutor(max_workers=2 if options.quick else 1) as pool:
        for name, (found, failure, seconds) in zip(names, pool.map(timed, names), strict=True):
            targets += found
            if failure is not None:
                failures[name] = failure
            console.print(f"{name}: {failure or 'done'}, {seconds:.0f} s", highlight=False)
    console.print(targets_table(targets))
    for name, failure in failures.items():
        console.print(f"failed: {name}: {failure}", style="red", highlight=False, markup=False)
    console.print(f"{time.monotonic() - began:.0f} s, JSON in {RESULTS.name}/", highlight=False)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
