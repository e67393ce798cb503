"""Fresh processes: how long until the first image, and how much memory that takes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict

from stepfuse.benchmarking.result import Configuration, Start
from stepfuse.bundle.bundle import Bundle
from stepfuse.errors import StepfuseError
from stepfuse.serving.progress import ProgressBar

#: Processes of each configuration; medians and all times are kept.
PROCESSES = 5

# The clock is the system's, which both processes read. A single step, so that what is timed is the start. The peak is
# this program's own (proc(5)): that of getrusage begins with what the process had that started it.
_FIRST_IMAGE = """
import json, sys, time
import stepfuse as sf
engine = sf.Engine.load(sys.argv[1], **json.loads(sys.argv[2]))
engine.sample(1, steps=1, guidance_scale=1.0, seed=0)
ended = time.clock_gettime(time.CLOCK_MONOTONIC)
[peak] = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM:")]
print(ended, peak)
engine.close()
"""


def measure_starts(
    bundle: Bundle, configurations: Sequence[Configuration], *, processes: int = PROCESSES, progress: bool = False
) -> tuple[list[Start], dict[Configuration, str]]:
    """Starts processes of all configurations in turn: files are in the disk's cache, compiled networks are kept.

    Returns:
        What was measured, and why a configuration was not: the last line that its process wrote.
    """
    failures: dict[Configuration, str] = {}
    seconds: dict[Configuration, list[float]] = {one: [] for one in configurations}
    peaks: dict[Configuration, list[int]] = {one: [] for one in configurations}
    bar = ProgressBar(processes * len(configurations), "cold starts", unit="processes") if progress else None
    if bar is not None:
        bar.start()
    try:
        for done in range(processes):
            for place, one in enumerate(configurations):
                if one not in failures:
                    try:
                        took, peak = _run(bundle, one)
                    except StepfuseError as error:
                        failures[one] = str(error)
                    else:
                        seconds[one].append(took)
                        peaks[one].append(peak)
                if bar is not None:
                    bar.update(done * len(configurations) + place + 1, processes * len(configurations))
    finally:
        if bar is not None:
            bar.stop()
    return [Start(one, seconds[one], peaks[one]) for one in configurations if one not in failures], failures


def _run(bundle: Bundle, configuration: Configuration) -> tuple[float, int]:
    """Seconds until the first image of a process, and its peak memory in bytes.

    Raises:
        StepfuseError: If the process fails.
    """
    command = [sys.executable, "-c", _FIRST_IMAGE, str(bundle.path.absolute()), json.dumps(asdict(configuration))]
    began = time.clock_gettime(time.CLOCK_MONOTONIC)
    # "-c" imports from the working folder first: one that only root writes to.
    process = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False)
    if process.returncode != 0:
        said = (process.stderr.strip() or "it wrote nothing").splitlines()[-1]
        raise StepfuseError(f"a fresh process of {configuration} ended with {process.returncode}: {said}")
    ended, kibibytes = process.stdout.split()
    return float(ended) - began, 1024 * int(kibibytes)
