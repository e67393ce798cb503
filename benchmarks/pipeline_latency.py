"""A picture of a prompt by five ways to draw it from the same weights and latents: its latency, and the peak memory.

Each way is a process of its own, which draws a picture to warm up and then three; ``sd_pipelines.py`` has the ways.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from harness import arguments
from report import Report
from sd_pipelines import GUIDANCE, SIZES, WAYS, save

PEER = "diffusers eager"
STEPS, PICTURES = 20, 3
MAX_DIFFERENCE = 1e-3

UNFAIR = (
    "Weights are random: pictures are noise, times and memory are those of any weights.",
    "The sizes are small for text to image; the larger the network, the less the loop around it matters.",
    "Where ONNX Runtime draws, most of the difference to eager torch is the network library's, not the loop's.",
    "The Python loop is ours, written as optimum's pipelines are; optimum itself is not installed.",
    "compile(pipe, bundle) keeps the torch pipeline in memory beside the bundle's denoiser.",
    "Peak memory is the kernel's largest resident set, shared libraries and the load of the weights included.",
    "Loading is not timed: a process that draws one picture pays for the imports too, see cold_start.py.",
)


def main() -> None:
    """Runs all ways on all sizes."""
    if len(sys.argv) == 3 and sys.argv[1] == "--worker":
        return work(json.loads(sys.argv[2]))
    options = arguments(__doc__)
    rounds, sizes = (1, ["tiny"]) if options.quick else (3, list(SIZES))
    configuration = {"rounds": rounds, "pictures": PICTURES, "steps": STEPS, "guidance_scale": GUIDANCE, "sizes": SIZES}
    report = Report("pipeline_latency", options.quick, configuration, UNFAIR)
    for size in sizes:
        with tempfile.TemporaryDirectory() as scratch:
            measure(report, size, Path(scratch), rounds)
    report.publish()


def measure(report: Report, size: str, scratch: Path, rounds: int) -> None:
    """Adds a size to the report, and refuses pictures that differ."""
    parameters, _ = _in_a_process(None, size, scratch)  # what this process holds, its children count as their own peak
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    peaks: dict[str, list[float]] = {way: [] for way in WAYS}
    order = list(WAYS)
    for _ in range(rounds):
        random.Random(len(seconds[PEER])).shuffle(order)
        for way in order:
            found, peak = _in_a_process(way, size, scratch)
            seconds[way].append(statistics.median(found))
            peaks[way].append(peak)
    pictures = {way: np.load(_picture(scratch, way)) for way in WAYS}
    differences = {way: float(np.abs(picture - pictures[PEER]).max()) for way, picture in pictures.items()}
    for way, difference in differences.items():
        if difference > MAX_DIFFERENCE:
            raise RuntimeError(f"{way}: pictures must be equal to {MAX_DIFFERENCE}, got {difference}")
    side = SIZES[size][0]
    case = f"{size}: UNet of {parameters / 1e6:.1f} M parameters, {side} x {side} pixels, {STEPS} steps"
    extra = {way: {"peak_MB": statistics.median(peaks[way]), "difference": differences[way]} for way in WAYS}
    report.add(case, seconds, PEER, extra=extra)


def work(task: dict[str, Any]) -> None:
    """A process of one way: prints the seconds of each picture as JSON. Of none: makes the pipeline and the bundle."""
    scratch = Path(task["scratch"])
    if task["way"] is None:
        from stepfuse.export import from_diffusers

        parameters = save(task["size"], scratch / "pipeline")
        from_diffusers(scratch / "pipeline", scratch / "bundle")
        print(json.dumps(parameters))
        return
    draw = WAYS[task["way"]](task["size"], scratch / "pipeline", scratch / "bundle", STEPS)
    np.save(_picture(scratch, task["way"]), draw())
    seconds = []
    for _ in range(PICTURES):
        began = time.perf_counter()
        draw()
        seconds.append(time.perf_counter() - began)
    print(json.dumps(seconds))


def _in_a_process(way: str | None, size: str, scratch: Path) -> tuple[Any, float]:
    """What ``work`` prints, and the peak resident megabytes."""
    task = json.dumps({"way": way, "size": size, "scratch": str(scratch)})
    command = [sys.executable, __file__, "--worker", task]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        printed = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError(f"{way or 'export'} must exit with 0, got {process.returncode}")
    return json.loads(printed.splitlines()[-1]), usage.ru_maxrss * (1024 if sys.platform == "linux" else 1) / 1e6


def _picture(scratch: Path, way: str) -> Path:
    return scratch / f"{list(WAYS).index(way)}.npy"


if __name__ == "__main__":
    main()
