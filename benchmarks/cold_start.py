"""From process start to the first image of the embedded model, in fresh processes, and their peak memory."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from harness import Contender, arguments, in_turn
from report import Report

FIRST_IMAGE = """
import sys, stepfuse as sf
sf.Engine.load(sys.argv[1]).sample(1, cond=0, sampler="ddim", steps=50, guidance_scale=3.0, seed=0)
"""
PEER = "import torch, diffusers"
PEER_CODE = "import torch; from diffusers import DDIMScheduler"
CLAIMED = "stepfuse in Python"
FLOOR = "import numpy, onnxruntime"

UNFAIR = (
    "The peer only imports torch and one scheduler of diffusers: it loads no weights and samples nothing.",
    "Cold means a fresh process. Files are in the disk cache and modules compiled to bytecode, for all contenders.",
    "Peak memory is the kernel's largest resident set, shared libraries included.",
)


class Process:
    """A command that is run in fresh processes.

    Attributes:
        peaks: Peak resident megabytes of each run.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self.command = command
        self.peaks: list[float] = []
        self.environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}

    def __call__(self) -> None:
        """Runs it once, start to end."""
        process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL, env=self.environment)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            raise RuntimeError(f"{self.command} must exit with 0, got {process.returncode}")
        self.peaks.append(usage.ru_maxrss * (1024 if sys.platform == "linux" else 1) / 1e6)


def main() -> None:
    """Runs all processes."""
    options = arguments(__doc__, bundle=True)
    rounds = 1 if options.quick else 7
    report = Report("cold_start", options.quick, {"model": options.bundle, "rounds": rounds}, UNFAIR)
    with tempfile.TemporaryDirectory() as folder:
        picture = str(Path(folder) / "first.png")
        executable = str(Path(sys.executable).with_name("stepfuse"))
        processes = {
            CLAIMED: Process([sys.executable, "-c", FIRST_IMAGE, options.bundle]),
            "stepfuse sample": Process(
                [executable, "sample", options.bundle, "--number", "1", "--output", picture, "--force"]
            ),
            FLOOR: Process([sys.executable, "-c", FLOOR]),
            PEER: Process([sys.executable, "-c", PEER_CODE]),
        }
        contenders = {name: Contender(process) for name, process in processes.items()}
        samples = in_turn(contenders, rounds=rounds, batch_seconds=0.0)
    memory = {name: float(np.median(process.peaks)) for name, process in processes.items()}
    report.add("first image", samples, PEER, extra={name: {"peak_MB": peak} for name, peak in memory.items()})
    for name in (CLAIMED, "stepfuse sample"):
        report.at_most(f"cold start to the first image, {name}", "s", 1.5, float(np.median(samples[name])))
        report.at_most(f"peak memory to the first image, {name}", "MB", 250, memory[name])
    report.publish()


if __name__ == "__main__":
    main()
