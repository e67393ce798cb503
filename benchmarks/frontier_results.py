"""The figures of ``frontier.py`` as tables: all samplers on standard output, the best in ``docs/frontier.md``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from report import figures_table
from rich.table import Table

from stepfuse.analysis.experiments.wording import short

Row = Mapping[str, Any]
MARK = "\0"  # before and after each figure, as in ``excerpts``
FITTED = "fitted"  # in the place of noise levels


def best(rows: Sequence[Row], figure: str) -> Row | None:
    """The row with the least of a figure, among those of the most samples; None if none has it."""
    known = [row for row in rows if row.get(figure) is not None]
    return min(known, key=lambda row: (-row["samples"], row[figure]), default=None)


def select(rows: Sequence[Row], **wanted: Any) -> list[Row]:
    """The rows with these values."""
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def matrix(rows: Sequence[Row]) -> list[Table]:
    """A table a problem: the least RMS of each sampler, or its least distance if it adds noise, by forwards."""
    found = []
    for problem in dict.fromkeys(row["problem"] for row in rows):
        own = select(rows, problem=problem)
        counts = sorted({row["forwards"] for row in own})
        lines = []
        for sampler in dict.fromkeys(FITTED if row["levels"] == FITTED else row["sampler"] for row in own):
            same = select(own, levels=FITTED) if sampler == FITTED else select(own, sampler=sampler)
            figure = "distance" if same[0]["noise"] else "rms"
            cells = [best(select(same, forwards=count), figure) for count in counts]
            shown = {str(n): "" if one is None else f"{one[figure]:.3g}" for n, one in zip(counts, cells, strict=True)}
            lines.append({"sampler": sampler, "figure": figure, **shown})
        found.append(figures_table(f"{problem}: best noise levels and order of each sampler", lines))
    return found


def markdown(document: Mapping[str, Any]) -> list[str]:
    """The table of ``docs/frontier.md``, a line a problem and number of forwards, each figure between ``MARK``.

    Args:
        document: The JSON of the benchmark.
    """
    found = []
    for problem, numbers in document["configuration"]["problems"].items():
        own = select(document["results"], problem=problem)
        for forwards in sorted({row["forwards"] for row in own}):
            rows = select(own, forwards=forwards)
            made = [row for row in rows if row["levels"] != FITTED]
            learned = best(select(rows, levels=FITTED), "rms")
            cells = [
                f"{problem}, {forwards}",
                _cell(best(made, "rms"), "rms"),
                _number(best(select(made, sampler="ddim"), "rms"), "rms"),
                _number(learned, "rms"),
                _cell(best(select(made, noise=False), "distance"), "distance"),
                _cell(best(select(made, noise=True), "distance"), "distance"),
                _number(learned, "distance"),
                " and ".join(_figure(value) for value in numbers["exact_distances"]),
            ]
            found.append(f"| {' | '.join(cells)} |")
    return found


def advice(document: Mapping[str, Any]) -> list[str]:
    """What README and docs say of ``fashion`` at some numbers of forwards: a fitted table, the best by hand, DDIM."""
    own, found = select(document["results"], problem="fashion"), []
    for forwards in (5, 10, 20, 50):
        rows = select(own, forwards=forwards)
        made = [row for row in rows if row["levels"] != FITTED]
        figures = {
            "fitted": best(select(rows, levels=FITTED), "rms"),
            "by hand": best(made, "rms"),
            "by `ddim`": best(select(made, sampler="ddim"), "rms"),
        }
        said = [f"{_number(row, 'rms')} {name}" for name, row in figures.items() if row is not None]
        found.append(f"at {forwards}: {', '.join(said)}")
    return found


def _cell(row: Row | None, figure: str) -> str:
    return "" if row is None else f"{_figure(row[figure])} `{row['sampler']}`{row['name'][len(row['sampler']) :]}"


def _number(row: Row | None, figure: str) -> str:
    return "" if row is None else _figure(row[figure])


def _figure(value: float) -> str:
    return f"{MARK}{short(value, 2)}{MARK}"
