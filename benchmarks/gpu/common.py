"""What the GPU's benchmarks share: options, and a report with the GPU's name, in the folder given."""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

import report
from timing import ClockSamples, clocks, load, machine

LONGEST = 400  # characters of an error
GAIN = 1.05  # times as fast: less is none


def cubins() -> Path | None:
    """The kernels that were built for this GPU, where ``check.py`` has built them; else Triton compiles."""
    folder = Path(os.environ.get("STEPFUSE_CUBINS", ""))
    return folder if (folder / "manifest.json").exists() else None


def options(description: str | None) -> Namespace:
    """``quick``, where results go, and how long it may take."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="few rounds: to see it work, not to quote")
    parser.add_argument("--output", type=Path, default=report.RESULTS, help="folder of the JSON")
    parser.add_argument("--seconds", type=float, default=240.0, help="no case is begun after so long")
    return parser.parse_args()


class GpuReport(report.Report):
    """A report of what was measured on a GPU, written anew after every case: what comes later takes nothing with it.

    Attributes:
        skipped: What was not measured, and why.
        failed: What could not be, and how it ended.
        remarks: What a reader should know of the figures.
    """

    def __init__(self, name: str, given: Namespace, configuration: Mapping[str, Any], unfair: Sequence[str]) -> None:
        super().__init__(name, given.quick, configuration, unfair)
        self._until = time.monotonic() + given.seconds
        load()
        self._machine = machine()
        self._clocks = ClockSamples()
        self.skipped: list[str] = []
        self.failed: list[str] = []
        self.remarks: list[str] = []
        report.RESULTS = given.output

    @contextmanager
    def noting(self, what: str) -> Iterator[None]:
        """What fails inside is noted, and the rest goes on."""
        try:
            yield
        except ModuleNotFoundError as error:
            self.skipped.append(f"{what}: {error.name} is not installed")
        except Exception as error:
            traceback.print_exc()
            text = "; ".join(str(error).splitlines())[:LONGEST]
            self.failed.append(f"{what}: {type(error).__name__}: {text}")

    def attempt(self, case: str, measure: Callable[[], object]) -> None:
        """Measures a case if there is time. One that fails is noted, and the next ones are measured."""
        if time.monotonic() >= self._until:
            self.skipped.append(f"{case}: no time was left")
            return
        print(f"{case} ...", flush=True)
        with self.noting(case):
            measure()
        with suppress(RuntimeError):  # where the device is lost, all that follows says so
            torch.cuda.empty_cache()
        self.save()

    def never_slower(self, peer: str, case: str, ratio: float) -> None:
        """Adds the target that we are not slower than a peer; where there is no gain a remark says so."""
        self.at_least(f"never slower than {peer}: {case}", "x", 1, ratio)
        if ratio < GAIN:
            self.remarks.append(f"no gain over {peer}: {case}, {ratio:.3f} times as fast")

    def publish(self) -> int:  # type: ignore[override]
        """Prints the tables and writes the file; returns 1 if a case failed, else 0."""
        for word, lines in (("remark", self.remarks), ("skipped", self.skipped), ("failed", self.failed)):
            for line in lines:
                print(f"{word}: {line}")
        super().publish()
        self._clocks.end()
        return int(bool(self.failed))

    def _document(self) -> dict[str, Any]:
        document = super()._document()
        document["machine"] |= self._machine | {"clocks_during": self._clocks.summary(), "clocks_after": clocks()}
        return document | {"remarks": self.remarks, "skipped": self.skipped, "failed": self.failed}
