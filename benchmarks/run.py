"""Runs every benchmark in a process of its own, and ends with the design's targets against the figures.

    python benchmarks/run.py           # all rounds, on an idle machine
    python benchmarks/run.py --quick   # a few rounds: to see it work, not to quote

``mixed_load.py`` is not among them: it takes an hour. The exit status is always 0: a benchmark is not a test.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

from harness import arguments
from report import RESULTS, Target, targets_table
from rich.console import Console

BENCHMARKS = (
    "step_cpu",
    "diffusers_step",
    "step_bandwidth",
    "loop_overhead",
    "end_to_end",
    "pipeline_latency",
    "cold_start",
    "simulate",
)
RUN_A_MODEL = ("end_to_end", "cold_start", "simulate")


def run(name: str, quick: bool, bundle: str) -> list[Target] | None:
    """Runs one benchmark; returns its targets, or None if it failed."""
    command = [sys.executable, str(Path(__file__).with_name(f"{name}.py"))]
    command += ["--quick"] * quick + (["--bundle", bundle] if name in RUN_A_MODEL else [])
    if subprocess.run(command, check=False).returncode != 0:
        return None
    document = json.loads((RESULTS / f"{name}{'.quick' if quick else ''}.json").read_text())
    names = [field.name for field in fields(Target)]
    return [Target(**{key: target[key] for key in names}) for target in document["targets"]]


def main() -> None:
    """Runs all."""
    options = arguments(__doc__, bundle=True)
    began = time.monotonic()
    console = Console(width=None if Console().is_terminal else 120)
    found = {name: run(name, options.quick, options.bundle) for name in BENCHMARKS}
    console.print(targets_table([target for targets in found.values() for target in targets or []]))
    if failed := [name for name, targets in found.items() if targets is None]:
        console.print(f"failed: {', '.join(failed)}", style="red")
    console.print(f"{time.monotonic() - began:.0f} s, JSON in {RESULTS.name}/", highlight=False)


if __name__ == "__main__":
    main()
