"""A run of ``stepfuse sample``: its samples, the files they go to, and what is reported of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import stepfuse as sf
from stepfuse.cli.common import facts_of
from stepfuse.cli.console import Report
from stepfuse.cli.options import Sampling
from stepfuse.cli.run_files import RunFiles, Writing
from stepfuse.requests.resolution import seeds_of

_MOST = 1_000_000  # samples of a run: a mistyped number must not fill the memory


class Run:
    """What a run draws, and what of it is written.

    Args:
        bundle: The model.
        sampling: How it is sampled.
        samples: What tells the samples apart: index, seed, and prompt or class.
        files: Where they go.
        report: Where the run is reported.
    """

    def __init__(
        self,
        bundle: sf.Bundle,
        sampling: Sampling,
        samples: Sequence[Mapping[str, Any]],
        files: RunFiles,
        report: Report,
    ) -> None:
        self.bundle, self.samples, self.files, self.report = bundle, samples, files, report
        self.table = sampling.compile(bundle.info)
        self.title = ""  # of what was drawn first
        self._left: list[int] = []
        self._written: list[str] = []

    @property
    def _one_by_one(self) -> bool:
        """Whether each file is reported as it is written."""
        return len(self._left) > 1 and not self.files.shared

    def begin(self, writing: Writing) -> list[int]:
        """The samples that are to be drawn, after a look at whether they can be written: ``RunFiles.left``."""
        self._left = self.files.left(writing)
        return self._left

    def write(self, index: int, save: Callable[[Path], object]) -> None:
        """Has the file of a sample written, or that of all."""
        target = self.files.targets[index]
        target.write(save)
        self._written.append(target.name)
        if self._one_by_one:  # as they come; the file of all at the end
            self.report.say(f"written to {target.name}")

    def finish(self, summary: str, seconds: float, **facts: Any) -> None:
        """Reports the run.

        Args:
            summary: What was drawn, in words; empty if nothing was.
            seconds: How long it took.
            **facts: More for programs.
        """
        kept = len(self.samples) - len(self._left)
        if self._left:
            self.report.say(self.title, bold=True)
            self.report.say(summary)
        if self._written and not self._one_by_one and not self.files.is_stdout:
            self.report.say(f"written to {self._written[0]}")
        if kept:
            self.report.say(f"{kept} of {len(self.samples)} were there already")
        drawn = set(self._left)
        self.report.finish(
            model=self.bundle.name,
            **facts_of(self.table),
            samples=[
                {**sample, "file": self.files.targets[i].name, "drawn": i in drawn}
                for i, sample in enumerate(self.samples)
            ],
            files=self._written,
            seconds=round(seconds, 3),
            **facts,
        )


def seeds_of_run(seed: int, number: int, prompts: int = 1) -> list[int]:
    """A seed a sample.

    Args:
        seed: The first.
        number: ``--number``.
        prompts: How many prompts there are, each with that many samples.

    Raises:
        ValueError: If ``number`` is below 1, there are more than a million, or ``seed`` not between 0 and 2^64 - 1.
    """
    samples = number * prompts
    if number < 1:
        raise ValueError(f"--number must be at least 1, got {number}")
    if samples > _MOST:
        raise ValueError(f"a run must have at most {_MOST:,} samples, got {samples:,}: take several, with other --seed")
    return seeds_of(seed, samples)
