"""Checks what the latency-quality frontier must show, and exits with 1 naming what does not hold.

    python benchmarks/frontier_orderings.py docs/analysis/frontier.json   # what a report measured
    python benchmarks/frontier_orderings.py                 # measured anew, some twenty minutes on two cores
    python benchmarks/frontier_orderings.py --samples 100   # the same with fewer samples, to see it work

What is checked and why is said in ``stepfuse.analysis.orderings``. Distances compare between equally many samples only,
and latencies within one run.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

import stepfuse as sf
from stepfuse.analysis import Frontier, Judge, broken_orderings, frontier, orderings

VERDICTS = {True: "[green]holds[/]", False: "[red]broken[/]", None: "reported"}


def measured(samples: int) -> Frontier:
    """The frontier of the embedded models."""
    with sf.Engine.load("fashion") as teacher, sf.Engine.load("fashion-8step") as student:
        return frontier(teacher, student=student, features=Judge.load("fashion"), samples=samples, progress=True)


def main() -> int:
    """Reads or measures, prints each ordering, and returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("frontier", nargs="?", type=Path, help="a frontier's JSON; without it, it is measured")
    parser.add_argument("--samples", type=int, default=500, help="samples a row, where it is measured")
    options = parser.parse_args()
    if options.frontier is None:
        found = measured(options.samples)
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
    Console(width=None if sys.stdout.isatty() else 150).print(table)
    broken = broken_orderings(found)
    for line in broken:
        print(f"does not hold: {line}", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
