"""What the GPU's benchmarks share: options, and a report that knows the GPU and goes where it is told."""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

import report
from timing import clocks, machine


def options(description: str | None) -> Namespace:
    """``quick``, where results go, and how long it may take."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="few rounds: to see it work, not to quote")
    parser.add_argument("--output", type=Path, default=report.RESULTS, help="folder of the JSON")
    parser.add_argument("--seconds", type=float, default=240.0, help="no case is begun after so long")
    return parser.parse_args()


class GpuReport(report.Report):
    """A report of what was measured on a GPU. ``skipped`` says what was not, and why."""

    def __init__(self, name: str, given: Namespace, configuration: Mapping[str, Any], unfair: Sequence[str]) -> None:
        super().__init__(name, given.quick, configuration, unfair)
        self._until = time.monotonic() + given.seconds
        self._output = given.output
        self._machine = machine()
        self.skipped: list[str] = []
        self.failed: list[str] = []

    def attempt(self, case: str, measure: Callable[[], object]) -> None:
        """Measures a case if there is time. One that fails is noted, and the next ones are measured."""
        if time.monotonic() >= self._until:
            self.skipped.append(f"{case}: no time was left")
            return
        try:
            measure()
        except ModuleNotFoundError as error:
            self.skipped.append(f"{case}: {error.name} is not installed")
        except Exception as error:
            traceback.print_exc()
            self.failed.append(f"{case}: {type(error).__name__}: {error}")
        torch.cuda.empty_cache()

    def publish(self) -> int:  # type: ignore[override]
        """Prints the tables and writes the file; returns 1 if a case failed, else 0."""
        report.RESULTS = self._output
        for word, lines in (("skipped", self.skipped), ("failed", self.failed)):
            for line in lines:
                print(f"{word}: {line}")
        super().publish()
        return int(bool(self.failed))

    def _document(self) -> dict[str, Any]:
        document = super()._document()
        document["machine"] |= self._machine | {"clocks_after": clocks()}
        return document | {"skipped": self.skipped, "failed": self.failed}
