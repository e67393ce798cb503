"""Every sampler on every choice of noise levels, at equal forwards: how far its samples are from the exact ones.

    python benchmarks/frontier.py                          # an hour on two idle cores; goes on where it was stopped
    python benchmarks/frontier.py --draw                   # docs/frontier.png, of the committed JSON
    python benchmarks/frontier.py --table                  # the table of docs/frontier.md, of the committed JSON
    python benchmarks/frontier.py --quick                  # few samplers and noises: to see it work, not to quote

Samplers are those of ``stepfuse.samplers.SAMPLERS``, so that a new one is measured by the next run, and no other again:
what was measured is kept in ``build/frontier``, by problem and table.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from frontier_problems import Array, Problem, fashion_problem, mixture_problem
from frontier_results import FITTED, MARK, Row, markdown, matrix, select
from report import RESULTS, TablesReport

from stepfuse.fitting.hand_made import HandMade, hand_made
from stepfuse.samplers import SAMPLERS

ROOT = Path(__file__).parent.parent
KEPT, PICTURE = ROOT / "build" / "frontier", ROOT / "docs" / "frontier.png"
FORWARDS = (8, 5, 10, 20, 6, 4, 15)  # what says most comes first: an interrupted run has it
MANY = 50  # forwards, of those alone that are measured in full at the most of the others
LEADERS = 3  # without noise, and as many with it: measured at that number
NEAR, FAR = 1.1, 2.0  # times the least error: what is nearer is measured in full, what is farther is not
CLOSE, AGAIN = 1.5, 4  # times the least error: what is nearer is screened again, with as many times more noises
YARDSTICK = "ddim"  # measured in full wherever it is

UNFAIR = (
    "Each sampler is shown with the noise levels and order that were best for it on some of the same noises.",
    "Those of samplers with noise are chosen at 10 forwards, and kept for all others.",
    "One small network of 28 x 28 pixels and one mixture: on another model the order may differ.",
    "Fitted tables were made for this network and guidance scale; what is made by hand is made for any.",
    "Of samplers with noise the distance alone is measured: they follow no fixed path.",
    "What is screened out is listed with fewer noises and, if it adds no noise, without a distance.",
    "The network's exact solution is a fine one of 200 steps of unipc, which may be nearer to unipc's own way.",
)


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        problems: What makes them.
        forwards: Of the network a sample, in the order of their measurement.
        many: More forwards, of the best alone; None leaves them out.
        chosen_at: Forwards at which the noise levels of samplers with noise are chosen, one of ``forwards``.
        samplers: Names.
    """

    problems: Sequence[Any]
    forwards: Sequence[int]
    many: int | None
    chosen_at: int
    samplers: Sequence[str]


SCREENED = (8, 80)  # a distance needs more images than the judge has features, 64
FULL = Size(
    (
        partial(mixture_problem, 1024, (256, 256)),
        partial(fashion_problem, 1.0, 128, SCREENED),
        partial(fashion_problem, 3.0, 128, SCREENED),
    ),
    FORWARDS,
    MANY,
    10,
    tuple(SAMPLERS),
)
QUICK = Size(
    (partial(mixture_problem, 66, (4, 8), steps=40), partial(fashion_problem, 1.0, 66, (2, 66), steps=4, threads=1)),
    (2, 3),
    None,
    2,
    ("ddim", "unipc", "euler_ancestral"),
)


class Ledger:
    """What was measured, by problem and table, in a file that grows by a line each.

    Args:
        path: Of the file; None keeps nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        lines = path.read_text().splitlines() if path and path.exists() else []
        self._known: dict[str, dict[str, Any]] = dict(json.loads(line) for line in lines)

    def measured(
        self, problem: Problem, exact: Array, entries: Sequence[HandMade], count: int, *, judged: bool
    ) -> list[dict[str, Any]]:
        """The figures of each table on the first ``count`` noises; draws what is not known.

        Args:
            problem: What is sampled.
            exact: Its exact solution.
            entries: Tables with their names.
            count: Noises.
            judged: Whether the distance is measured.
        """
        keys = [f"{problem.key}/{entry.table.digest}/{count}/{judged}" for entry in entries]
        missing = [(key, entry) for key, entry in zip(keys, entries, strict=True) if key not in self._known]
        samples = problem.sample([entry.table for _, entry in missing], count)
        for (key, entry), drawn in zip(missing, samples, strict=True):
            self._known[key] = figures(problem, exact, entry, drawn, judged=judged)
            if self._path:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                with self._path.open("a") as file:
                    file.write(json.dumps([key, self._known[key]]) + "\n")
        return [self._known[key] for key in keys]


def figures(problem: Problem, exact: Array, entry: HandMade, drawn: Array, *, judged: bool) -> dict[str, Any]:
    """RMS to the exact solution, of a table without noise, with its standard error; the distance, if it is judged."""
    found: dict[str, Any] = {"samples": len(drawn)}
    if not entry.table.uses_noise:
        squares = ((drawn - exact[: len(drawn)]) ** 2).reshape(len(drawn), -1).mean(1)
        error = float(np.sqrt(squares.mean()))
        found["rms"] = error
        found["rms_standard_error"] = float(squares.std(ddof=1) / np.sqrt(len(squares)) / (2 * error))
    if judged:
        found["distance"] = problem.distance(drawn)
    return found


def run(problem: Problem, size: Size, ledger: Ledger, exact: Array) -> Iterator[list[dict[str, Any]]]:
    """Measures a problem, samplers without noise first; yields its rows so far after each number of forwards."""
    rows: list[dict[str, Any]] = []
    for found in itertools.chain(without_noise(problem, size, ledger, exact), noisy(problem, size, ledger, exact)):
        rows += found
        yield rows
    if size.many:
        ways = leaders(select(rows, forwards=max(size.forwards), samples=problem.samples))
        chosen = [entry for entry in entries_of(problem, size.many, size) if way(entry) in ways]
        rows += in_full(problem, size.many, ledger, exact, chosen)
        yield rows


def without_noise(problem: Problem, size: Size, ledger: Ledger, exact: Array) -> Iterator[list[dict[str, Any]]]:
    """Rows of samplers without noise, for each number of forwards."""
    for forwards in size.forwards:
        entries = [entry for entry in entries_of(problem, forwards, size) if not entry.table.uses_noise]
        chosen, others = screen(problem, entries, ledger, exact, "rms")
        rows = in_full(problem, forwards, ledger, exact, [*chosen, *fitted(problem, forwards)])
        yield rows + [described(problem, forwards, entry) | found for entry, found in others]


def noisy(problem: Problem, size: Size, ledger: Ledger, exact: Array) -> Iterator[list[dict[str, Any]]]:
    """Rows of samplers with noise, for each number of forwards, on the noise levels that are best at one of them."""
    entries = [entry for entry in entries_of(problem, size.chosen_at, size) if entry.table.uses_noise]
    chosen, others = screen(problem, entries, ledger, exact, "distance")
    ways = {way(entry) for entry in chosen}
    yield [described(problem, size.chosen_at, entry) | found for entry, found in others]
    for forwards in size.forwards:
        entries = [entry for entry in entries_of(problem, forwards, size) if way(entry) in ways]
        yield in_full(problem, forwards, ledger, exact, entries)


def in_full(
    problem: Problem, forwards: int, ledger: Ledger, exact: Array, entries: Sequence[HandMade]
) -> list[dict[str, Any]]:
    """Rows of tables on all noises, with the distance."""
    found = ledger.measured(problem, exact, entries, problem.samples, judged=True)
    return [described(problem, forwards, entry) | one for entry, one in zip(entries, found, strict=True)]


def entries_of(problem: Problem, forwards: int, size: Size) -> list[HandMade]:
    """All tables made by hand, within so many forwards."""
    return hand_made(problem.engine, forwards, problem.guidance_scale, samplers=size.samplers)


def screen(
    problem: Problem, entries: Sequence[HandMade], ledger: Ledger, exact: Array, figure: str
) -> tuple[list[HandMade], list[tuple[HandMade, dict[str, Any]]]]:
    """What is measured in full, by a figure of few noises, and the others with theirs.

    Each sampler's best is, and what is near the least error, but nothing whose error is far above the least.
    """
    judged = figure == "distance"
    few = problem.screened[judged]
    found = ledger.measured(problem, exact, entries, few, judged=judged)
    if not judged and AGAIN * few < problem.samples:
        least = min(one["rms"] for one in found)
        close = [index for index, one in enumerate(found) if one["rms"] <= CLOSE * least]
        again = ledger.measured(problem, exact, [entries[index] for index in close], AGAIN * few, judged=False)
        for index, one in zip(close, again, strict=True):
            found[index] = one
    values = [one[figure] for one in found]
    best: dict[str, float] = {}
    for entry, value in zip(entries, values, strict=True):
        best[entry.sampler] = min(value, best.get(entry.sampler, value))
    chosen: list[HandMade] = []
    others: list[tuple[HandMade, dict[str, Any]]] = []
    for entry, value, one in zip(entries, values, found, strict=True):
        within = judged or value <= FAR * min(values) or entry.sampler == YARDSTICK
        near = not judged and value <= NEAR * min(values)
        if near or (within and value == best[entry.sampler]):
            chosen.append(entry)
        else:
            others.append((entry, one))
    return chosen, others


def leaders(rows: Sequence[Row]) -> set[tuple[str, str, int | None]]:
    """The best few samplers without noise, the best few with it, and the yardstick."""
    made = [row for row in rows if row["levels"] != FITTED]
    kept = [row for row in made if row["sampler"] == YARDSTICK]
    for noise, figure in ((False, "rms"), (True, "distance")):
        best: dict[str, Row] = {}
        for row in sorted(select(made, noise=noise), key=lambda row: float(row[figure])):
            best.setdefault(row["sampler"], row)
        kept += list(best.values())[:LEADERS]
    return {(row["sampler"], row["levels"], row["order"]) for row in kept}


def fitted(problem: Problem, forwards: int) -> list[HandMade]:
    """The tables that come with the model for so many forwards and the problem's guidance scale."""
    return [
        HandMade(table.sampler, FITTED, None, table)
        for table in problem.engine.info.tables.values()
        if len(table) == forwards and table.options["guidance_scale"] == problem.guidance_scale
    ]


def described(problem: Problem, forwards: int, entry: HandMade) -> dict[str, Any]:
    """What a row says of a table: ``forwards`` is what was allowed, ``taken`` what it has."""
    return {
        "problem": problem.name,
        "forwards": forwards,
        "taken": len(entry.table),
        "passes": entry.table.passes,
        "name": entry.name if entry.levels != FITTED else entry.sampler,
        "sampler": entry.sampler,
        "levels": entry.levels,
        "order": entry.order,
        "noise": entry.table.uses_noise,
    }


def way(entry: HandMade) -> tuple[str, str, int | None]:
    """What a table has in common with those of other numbers of forwards."""
    return entry.sampler, entry.levels, entry.order


def measure(size: Size, quick: bool, folder: Path | None) -> TablesReport:
    """Measures all problems; what is measured is written as it goes."""
    ledger = Ledger(folder and folder / "rows.jsonl")
    numbers: dict[str, Any] = {}
    configuration = {
        "forwards": sorted(size.forwards),
        "many": size.many,
        "near": NEAR,
        "far": FAR,
        "problems": numbers,
    }
    report = TablesReport("frontier", quick, configuration, UNFAIR)
    for make in size.problems:
        problem = make()
        exact, numbers[problem.name] = problem.exact(folder and folder / f"{problem.key}.npz")
        numbers[problem.name] |= {"samples": problem.samples, "screened": problem.screened}
        before = list(report.results)
        for rows in run(problem, size, ledger, exact):
            report.results = before + rows
            report.save()
            print(f"{problem.name}: {rows[-1]['forwards']} forwards, {len(rows)} rows", flush=True)
        problem.engine.close()
    report.tables = matrix(report.results)
    return report


def main(
    quick: Annotated[bool, typer.Option(help="little: to see it work, not to quote")] = False,
    draw: Annotated[bool, typer.Option(help="measure nothing, only draw docs/frontier.png")] = False,
    table: Annotated[bool, typer.Option(help="measure nothing, only print the table of docs/frontier.md")] = False,
) -> None:
    """Measures, draws or prints; see the module."""
    if table or draw:
        document: Mapping[str, Any] = json.loads((RESULTS / "frontier.json").read_text())
        if table:
            print("\n".join(markdown(document)).replace(MARK, ""))
        if draw:
            draw_to(PICTURE, document["results"], document["configuration"]["problems"])
        return
    report = measure(QUICK if quick else FULL, quick, None if quick else KEPT)
    report.publish()
    draw_to(
        ROOT / "build" / "frontier.quick.png" if quick else PICTURE, report.results, report.configuration["problems"]
    )


def draw_to(path: Path, rows: Sequence[Mapping[str, Any]], problems: Mapping[str, Any]) -> None:
    """The picture."""
    from frontier_plot import draw_frontier  # needs matplotlib

    from stepfuse.analysis import save_figure

    path.parent.mkdir(exist_ok=True)
    save_figure(draw_frontier(rows, problems), path)


if __name__ == "__main__":
    typer.run(main)
