"""Checks what the latency-quality frontier must show, and exits with 1 naming what does not hold.

    python benchmarks/frontier_orderings.py docs/analysis/frontier.json   # what a report measured
    python benchmarks/frontier_orderings.py                 # measured anew, some twenty minutes on two cores
    python benchmarks/frontier_orderings.py --samples 100   # the same with fewer samples
    python benchmarks/frontier_orderings.py --quick         # few samples of few steps, to see it work

What is checked and why is said in ``stepfuse.analysis.orderings``. Distances compare between equally many samples only,
and latencies within one run. With ``--quick`` the orderings are printed, written to JSON, and do not set the exit
status: so few samples of so few steps show nothing.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from report import TablesReport
from rich.console import Console
from rich.table import Table

import stepfuse as sf
from stepfuse.analysis import Frontier, Judge, broken_orderings, frontier, orderings

VERDICTS = {True: "[green]holds[/]", False: "[red]broken[/]", None: "reported"}


QUICK_SAMPLES = 66  # a distance needs more samples than features
QUICK_TEACHER = (
    ("ddpm_strided", {"steps": 2, "guidance_scale": 1.0}),
    ("ddim", {"steps": 2, "guidance_scale": 1.0}),
    ("ddim", {"steps": 2, "guidance_scale": 3.0}),
)
QUICK_STUDENT = (("ddim", {"steps": 2}),)
QUICK_UNFAIR = ("Rows of 50 steps are missing, and so few samples of 2 steps show nothing.",)


def measured(samples: int, *, quick: bool = False) -> Frontier:
    """The frontier of the embedded models; with ``quick`` of few samples of few steps."""
    options: dict[str, Any] = {"samples": samples}
    if quick:
        options = {"samples": QUICK_SAMPLES, "configurations": QUICK_TEACHER, "latency_repeats": 1}
        options["student_configurations"] = QUICK_STUDENT
    threads = 1 if quick else 0
    with (
        sf.Engine.load("fashion", threads=threads) as teacher,
        sf.Engine.load("fashion-8step", threads=threads) as student,
    ):
        return frontier(teacher, student=student, features=Judge.load("fashion"), progress=True, **options)


def save_quick(found: Frontier, table: Table) -> None:
    """Prints a quick frontier's orderings and writes them with its rows."""
    configuration = {"teacher": "fashion", "student": "fashion-8step", "samples": found.samples, "seed": found.seed}
    report = TablesReport("frontier_orderings", True, configuration, QUICK_UNFAIR)
    report.results += [asdict(row) for row in found.rows]
    report.results += [{"ordering": asdict(one)} for one in orderings(found)]
    report.tables.append(table)
    report.publish()


def main() -> int:
    """Reads or measures, prints each ordering, and returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("frontier", nargs="?", type=Path, help="a frontier's JSON; without it, it is measured")
    parser.add_argument("--samples", type=int, default=500, help="samples a row, where it is measured")
    parser.add_argument("--quick", action="store_true", help="measure few samples of few steps: to see it work")
    options = parser.parse_args()
    if options.quick and options.frontier is not None:
        parser.error(f"--quick measures and reads no frontier, got {options.frontier}")
    if options.frontier is None:
        found = measured(options.samples, quick=options.quick)
    else:
        try:
            found = Frontier.from_json(options.frontier)
        except (OSError, ValueError) as error:
            parser.error(str(error))
    table = Table(title="orderings of the frontier")
    for column in ("claim", "wanted", "measured", ""):
        table.add_column(column)
    for one in orderings(found):
        table.add_row(one.claim, one.wanted, one.measured, VERDICTS[one.holds])
    if options.quick:
        save_quick(found, table)
        return 0
    Console(width=None if sys.stdout.isatty() else 150).print(table)
    broken = broken_orderings(found)
    for line in broken:
        print(f"does not hold: {line}", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
