"""A picture of a prompt in five ways from the same weights and latents: its latency, and the peak memory.

Each way is a process of its own, which makes a picture to warm up and then three; ``sd_pipelines.py`` has the ways.
With ``--quick`` all ways share a process, which imports torch once: its peak memory is that of all.
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
from sd_pipelines import GUIDANCE, QUICK_SIZE, SIZES, WAYS, save

PEER = "diffusers eager"
STEPS, PICTURES = 20, 3
QUICK_STEPS, QUICK_PICTURES = 2, 1
MAX_DIFFERENCE = 1e-3

UNFAIR = (
    "Weights are random: pictures are noise, times and memory are those of any weights.",
    "The sizes are small for text to image; the larger the network, the less the loop around it matters.",
    "Where ONNX Runtime runs, most of the difference to eager torch is the network library's, not the loop's.",
    "The Python loop is ours, written as optimum's pipelines are; optimum itself is not installed.",
    "compile(pipe, bundle) keeps the torch pipeline in memory beside the bundle's denoiser.",
    "Peak memory is the kernel's largest resident set, shared libraries and the load of the weights included.",
    "Loading is not timed: a process that makes one picture pays for the imports too, see cold_start.py.",
)


def main() -> None:
    """Runs all ways on all sizes."""
    if len(sys.argv) == 3 and sys.argv[1] == "--worker":
        return work(json.loads(sys.argv[2]))
    options = arguments(__doc__)
    rounds, sizes = (1, [QUICK_SIZE]) if options.quick else (3, [size for size in SIZES if size != QUICK_SIZE])
    steps, pictures = (QUICK_STEPS, QUICK_PICTURES) if options.quick else (STEPS, PICTURES)
    configuration = {"rounds": rounds, "pictures": pictures, "steps": steps, "guidance_scale": GUIDANCE, "sizes": SIZES}
    report = Report("pipeline_latency", options.quick, configuration, UNFAIR)
    for size in sizes:
        with tempfile.TemporaryDirectory() as scratch:
            measure(report, size, Path(scratch))
    report.publish()


def measure(report: Report, size: str, scratch: Path) -> None:
    """Adds a size to the report, and refuses pictures that differ."""
    steps, pictures = report.configuration["steps"], report.configuration["pictures"]
    task = {"size": size, "scratch": str(scratch), "steps": steps, "pictures": pictures, "one_thread": report.quick}
    parameters, _ = _in_a_process({**task, "ways": []})  # this process stays small: a child inherits its peak
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    peaks: dict[str, list[float]] = {way: [] for way in WAYS}
    order = list(WAYS)
    for _ in range(report.configuration["rounds"]):
        random.Random(len(seconds[PEER])).shuffle(order)
        for ways in [order] if report.quick else [[way] for way in order]:
            found, peak = _in_a_process({**task, "ways": ways})
            for way in ways:
                seconds[way].append(statistics.median(found[way]))
                peaks[way].append(peak)
    results = {way: np.load(_picture(scratch, way)) for way in WAYS}
    differences = {way: float(np.abs(picture - results[PEER]).max()) for way, picture in results.items()}
    for way, difference in differences.items():
        if not difference <= MAX_DIFFERENCE:
            raise RuntimeError(f"{way}: pictures must be equal to {MAX_DIFFERENCE}, got {difference}")
    side = SIZES[size][0]
    case = f"{size}: UNet of {parameters / 1e6:.1f} M parameters, {side} x {side} pixels, {steps} steps"
    extra = {way: {"peak_MB": statistics.median(peaks[way]), "difference": differences[way]} for way in WAYS}
    report.add(case, seconds, PEER, extra=extra)


def work(task: dict[str, Any]) -> None:
    """In a child process: prints the seconds of each picture by way as JSON; without ways, writes the bundle."""
    scratch = Path(task["scratch"])
    if task["one_thread"]:
        import torch

        torch.set_num_threads(1)
    if not task["ways"]:
        from stepfuse.export import from_diffusers

        parameters = save(task["size"], scratch / "pipeline")
        from_diffusers(scratch / "pipeline", scratch / "bundle")
        print(json.dumps(parameters))
        return
    seconds: dict[str, list[float]] = {}
    for way in task["ways"]:
        generate = WAYS[way](task["size"], scratch / "pipeline", scratch / "bundle", task["steps"])
        np.save(_picture(scratch, way), generate())
        seconds[way] = []
        for _ in range(task["pictures"]):
            began = time.perf_counter()
            generate()
            seconds[way].append(time.perf_counter() - began)
    print(json.dumps(seconds))


def _in_a_process(task: dict[str, Any]) -> tuple[Any, float]:
    """What ``work`` prints, and the peak resident megabytes."""
    command = [sys.executable, __file__, "--worker", json.dumps(task)]
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        assert process.stdout is not None
        printed = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            errors.seek(0)
            what = ", ".join(task["ways"]) or "export"
            raise RuntimeError(f"{what} must exit with 0, got {process.returncode}: {errors.read()[-2000:]}")
    return json.loads(printed.splitlines()[-1]), usage.ru_maxrss * (1024 if sys.platform == "linux" else 1) / 1e6


def _picture(scratch: Path, way: str) -> Path:
    return scratch / f"{list(WAYS).index(way)}.npy"


if __name__ == "__main__":
    main()
