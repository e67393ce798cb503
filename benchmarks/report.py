"""What a benchmark found: a table on standard output, and a JSON file with all that is needed to judge it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from environment import commit, machine, versions
from rich.console import Console, Group
from rich.table import Table
from sources import SOURCES, digest

RESULTS = Path(__file__).parent / "results"
COMMON = ("case", "contender", "rounds", "seconds", "peer", "times_peer")


@dataclass(frozen=True)
class Target:
    """A number that the design promises, and the one that was measured."""

    claim: str
    unit: str
    wanted: float
    measured: float
    at_least: bool

    @property
    def met(self) -> bool:
        """Whether the promise is kept."""
        return self.measured >= self.wanted if self.at_least else self.measured <= self.wanted


@dataclass
class Report:
    """The findings of one benchmark.

    Attributes:
        name: Of the JSON file.
        quick: Whether the run was too short to quote; its file is named apart.
        configuration: What the figures depend on, beside the machine.
        unfair: What a reader should hold against the comparison.
    """

    name: str
    quick: bool
    configuration: Mapping[str, Any]
    unfair: Sequence[str]
    results: list[dict[str, Any]] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    date: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))
    commit: str | None = field(default_factory=commit)
    load_average: float = field(default_factory=lambda: os.getloadavg()[0])

    def add(
        self,
        case: str,
        samples: Mapping[str, Sequence[float]],
        peer: str,
        *,
        bytes_moved: Mapping[str, int | None] | None = None,
        extra: Mapping[str, Mapping[str, float]] | None = None,
    ) -> dict[str, float]:
        """Adds a case.

        Args:
            case: Its name.
            samples: Seconds a call by contender, a sample a round.
            peer: The contender that the others are compared with, round by round.
            bytes_moved: Bytes a call by contender, for the bandwidth.
            extra: Other figures by contender and by name; the name carries the unit.

        Returns:
            How many times as fast as the peer each contender is: the median over the rounds.
        """
        ratios = {}
        for contender, seconds in samples.items():
            result: dict[str, Any] = {"case": case, "contender": contender, "rounds": len(seconds)}
            result["seconds"] = percentiles(seconds)
            if moved := (bytes_moved or {}).get(contender):
                result["GB_per_second"] = moved / result["seconds"]["p50"] / 1e9
            result["peer"] = peer
            result["times_peer"] = percentiles(np.divide(samples[peer], seconds))
            result.update((extra or {}).get(contender, {}))
            ratios[contender] = result["times_peer"]["p50"]
            self.results.append(result)
        return ratios

    def at_least(self, claim: str, unit: str, wanted: float, measured: float) -> None:
        """Adds a target that ``measured`` must reach."""
        self.targets.append(Target(claim, unit, wanted, measured, at_least=True))

    def at_most(self, claim: str, unit: str, wanted: float, measured: float) -> None:
        """Adds a target that ``measured`` must stay within."""
        self.targets.append(Target(claim, unit, wanted, measured, at_least=False))

    def publish(self) -> None:
        """Prints the table and writes the file."""
        console = Console(width=None if Console().is_terminal else 140)
        console.print(self._table())
        if self.targets:
            console.print(targets_table(self.targets))
        for reason in self.unfair:
            console.print(f"unfair: {reason}", style="dim", highlight=False)
        self.save()

    def save(self) -> None:
        """Writes the file."""
        path = RESULTS / f"{self.name}{'.quick' if self.quick else ''}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(self._document(), indent=2) + "\n")

    def _document(self) -> dict[str, Any]:
        return {
            "benchmark": self.name,
            "quick": self.quick,
            "date": self.date,
            "commit": self.commit,
            "sources_sha256": digest(self.name) if self.name in SOURCES else None,
            "machine": machine() | {"load_average_before": self.load_average},
            "versions": versions(),
            "configuration": dict(self.configuration),
            "unfair": list(self.unfair),
            "results": self.results,
            "targets": [asdict(target) | {"met": target.met} for target in self.targets],
        }

    def _table(self) -> Table | Group:
        extra = list(dict.fromkeys(key for result in self.results for key in result if key not in COMMON))
        table = Table(title=self.name)
        for column in ("case", "contender"):
            table.add_column(column)
        for column in ("p20", "p50", "p80", *extra, "x peer (p20 - p80)"):
            table.add_column(column.replace("_", " "), justify="right")
        for result in self.results:
            times, is_peer = result["times_peer"], result["contender"] == result["peer"]
            table.add_row(
                result["case"],
                result["contender"],
                *(duration(result["seconds"][p]) for p in ("p20", "p50", "p80")),
                *(f"{result[key]:.4g}" if key in result else "" for key in extra),
                "the peer" if is_peer else f"{times['p50']:.2f} ({times['p20']:.2f} - {times['p80']:.2f})",
            )
        return table


@dataclass
class TablesReport(Report):
    """A report whose figures are not seconds a round: ``results`` and ``tables`` are filled by hand."""

    tables: list[Table] = field(default_factory=list)

    def _table(self) -> Group:
        return Group(*self.tables)


def figures_table(title: str, rows: Sequence[Mapping[str, str]]) -> Table:
    """Figures that are text already: a mapping a row, all with the same keys."""
    table = Table(title=title)
    for i, column in enumerate(rows[0]):
        table.add_column(column, justify="left" if i == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row.values())
    return table


def targets_table(targets: Sequence[Target]) -> Table:
    """Promises against figures."""
    table = Table(title="targets")
    for column in ("claim", "wanted", "measured", ""):
        table.add_column(column)
    for target in targets:
        bound = ">=" if target.at_least else "<="
        verdict = "[green]met[/]" if target.met else "[red]missed[/]"
        wanted, measured = f"{bound} {target.wanted:g} {target.unit}", f"{target.measured:.4g} {target.unit}"
        table.add_row(target.claim, wanted, measured, verdict)
    return table


def percentiles(values: Any) -> dict[str, float]:
    """The 20th, 50th and 80th."""
    return {f"p{p}": float(np.percentile(values, p)) for p in (20, 50, 80)}


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if abs(seconds) >= scale:
            return f"{seconds / scale:.2f} {unit}"
    return f"{seconds * 1e6:.2f} us"
