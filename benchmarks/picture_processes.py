"""Pictures of a prompt in several ways, each in processes of its own: seconds, peak memory, how far they differ."""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from harness import arguments
from report import Report
from sd_pipelines import GUIDANCE, QUICK_SIZE, SIZES, Generate

_WORKER = "--worker"


@dataclass(frozen=True)
class Comparison:
    """A benchmark. With ``--quick`` all ways share a process, which imports their libraries once.

    Attributes:
        script: The file that calls ``run``.
        about: What ``--help`` says.
        save: Writes what the ways load, of a size, into a folder; returns how many parameters the UNet has.
        ways: Each makes of a size, the pipeline's folder, the bundle's and a number of steps what draws a picture.
        peer: The way that others are compared with.
        bounds: How far a way's picture may be from the peer's, in [0, 1].
        unfair: As in ``Report``.
        rounds: Processes a way, each of which makes a picture to warm up and then ``pictures``.
        pictures: As said.
        steps: Of a picture.
    """

    script: str
    about: str
    save: Callable[[str, Path], int]
    ways: Mapping[str, Callable[[str, Path, Path, int], Generate]]
    peer: str
    bounds: Mapping[str, float]
    unfair: Sequence[str]
    rounds: int = 3
    pictures: int = 3
    steps: int = 20

    def run(self) -> None:
        """Runs all ways on all sizes, or in a child process what the parent asks for."""
        if len(sys.argv) == 3 and sys.argv[1] == _WORKER:
            return self._work(json.loads(sys.argv[2]))
        quick = arguments(self.about).quick
        rounds, steps, pictures = (1, 2, 1) if quick else (self.rounds, self.steps, self.pictures)
        sizes = [QUICK_SIZE] if quick else [size for size in SIZES if size != QUICK_SIZE]
        configuration = {"rounds": rounds, "pictures": pictures, "steps": steps}
        configuration |= {"guidance_scale": GUIDANCE, "sizes": SIZES}
        report = Report(Path(self.script).stem, quick, configuration, self.unfair)
        for size in sizes:
            with tempfile.TemporaryDirectory() as scratch:
                self._measure(report, size, Path(scratch))
        report.publish()

    def _measure(self, report: Report, size: str, scratch: Path) -> None:
        """Adds a size to the report, and refuses pictures that differ."""
        steps, pictures = report.configuration["steps"], report.configuration["pictures"]
        task = {"size": size, "scratch": str(scratch), "steps": steps, "pictures": pictures, "one_thread": report.quick}
        parameters, _ = self._in_a_process({**task, "ways": []})  # this process stays small: a child inherits its peak
        seconds: dict[str, list[float]] = {way: [] for way in self.ways}
        peaks: dict[str, list[float]] = {way: [] for way in self.ways}
        order = list(self.ways)
        for _ in range(report.configuration["rounds"]):
            random.Random(len(seconds[self.peer])).shuffle(order)
            for ways in [order] if report.quick else [[way] for way in order]:
                found, peak = self._in_a_process({**task, "ways": ways})
                for way in ways:
                    seconds[way].append(statistics.median(found[way]))
                    peaks[way].append(peak)
        results = {way: np.load(self._picture(scratch, way)) for way in self.ways}
        differences = {way: float(np.abs(picture - results[self.peer]).max()) for way, picture in results.items()}
        for way, difference in differences.items():
            if not difference <= self.bounds[way]:
                raise RuntimeError(f"{way}: pictures must be equal to {self.bounds[way]:.1e}, got {difference}")
        side = SIZES[size][0]
        case = f"{size}: UNet of {parameters / 1e6:.1f} M parameters, {side} x {side} pixels, {steps} steps"
        extra = {way: {"peak_MB": statistics.median(peaks[way]), "difference": differences[way]} for way in self.ways}
        report.add(case, seconds, self.peer, extra=extra)

    def _work(self, task: dict[str, Any]) -> None:
        """In a child process: prints seconds of each picture by way as JSON; without ways, writes what they load."""
        scratch = Path(task["scratch"])
        if task["one_thread"]:
            import torch

            torch.set_num_threads(1)
        if not task["ways"]:
            print(json.dumps(self.save(task["size"], scratch)))
            return
        seconds: dict[str, list[float]] = {}
        for way in task["ways"]:
            generate = self.ways[way](task["size"], scratch / "pipeline", scratch / "bundle", task["steps"])
            np.save(self._picture(scratch, way), generate())
            seconds[way] = []
            for _ in range(task["pictures"]):
                began = time.perf_counter()
                generate()
                seconds[way].append(time.perf_counter() - began)
        print(json.dumps(seconds))

    def _in_a_process(self, task: dict[str, Any]) -> tuple[Any, float]:
        """What ``_work`` prints, and the peak resident megabytes."""
        command = [sys.executable, self.script, _WORKER, json.dumps(task)]
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

    def _picture(self, scratch: Path, way: str) -> Path:
        return scratch / f"{list(self.ways).index(way)}.npy"
