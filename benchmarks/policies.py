"""Latency at every load: ``policy="auto"`` against simple schedules, the engine's own loop on a virtual clock.

python benchmarks/policies.py          # 20 loads by seed, at six fractions of capacity, on three cost curves: minutes
python benchmarks/policies.py --quick  # few requests and seeds: to see it work, not to quote
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Annotated

import numpy as np
import typer
from load import Load, Outcome, describe, poisson, say
from report import TablesReport, figures_table
from simulated import capacity, serve, static_batches

from stepfuse.serving.config import CostCurve

LOADS = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95)
MAX_ROWS = 64
WITHIN = 1.05
#: In times of a row.
CURVES = {
    "row-linear": CostCurve(0.05, 1.0),
    "between": CostCurve(3.0, 1.0),
    "row-free": CostCurve(100.0, 1.0),
}
CLAIMED = ("mean_s", "p95_s")
SHOWN = (*CLAIMED, "p95_s_of_a_load", "p99_s")
AUTO, UNCALIBRATED = "auto", "auto, not calibrated"

UNFAIR = (
    "The clock is virtual: a forward takes exactly what the curve says, planning and the step take nothing.",
    "Load is a fraction of the capacity of full forwards. Beyond its own capacity a system's latencies grow with the"
    " length of the run.",
    "Percentiles are of all requests of all seeds together; those 'of a load' are the average of the seeds'. The best"
    " of the others is another system in another cell: none of them is the best in all.",
    "At high load auto, as shortest, has its low mean and p95 at the cost of the longest requests: see p99 and max.",
)

System = Callable[[Load], Outcome]
Figures = dict[str, float]


@dataclass(frozen=True)
class Size:
    """How much is simulated.

    Attributes:
        seeds: Loads of each cell.
        requests: Of a load.
        warm: Requests at the beginning of a load that are not counted.
    """

    seeds: int
    requests: int
    warm: int


FULL, QUICK = Size(20, 4000, 100), Size(2, 120, 10)


def systems(cost: CostCurve) -> dict[str, System]:
    """All that are compared, by name."""
    run = partial(serve, cost=cost, max_rows=MAX_ROWS)
    return {
        "one at a time": partial(static_batches, cost=cost, max_rows=0),
        "fifo, full rows": partial(run, planned=None, policy="fifo"),
        "static batches, 16": partial(static_batches, cost=cost, max_rows=16),
        "static batches, 64": partial(static_batches, cost=cost, max_rows=64),
        "shortest": partial(run, planned=cost, policy="shortest"),
        AUTO: partial(run, planned=cost, policy="auto"),
        UNCALIBRATED: partial(run, planned=None, policy="auto"),
    }


def measured(run: System, loads: Sequence[Load], size: Size) -> Figures:
    """Latencies of a system over all loads: of all requests together, and the average over the loads."""
    latency = np.array([(run(load).finished - load.at)[size.warm :] for load in loads])  # (seeds, requests)
    found = {"mean_s": float(latency.mean()), "max_s": float(latency.max())}
    for percent in (50, 95, 99):
        found[f"p{percent}_s"] = float(np.percentile(latency, percent))
        found[f"p{percent}_s_of_a_load"] = float(np.percentile(latency, percent, axis=1).mean())
    return found


def compare(report: TablesReport, name: str, cost: CostCurve, size: Size) -> None:
    """Adds a curve: a table of ratios, and the worst of them as targets."""
    full, rows = capacity(cost, MAX_ROWS), []
    worst = dict.fromkeys(CLAIMED, 0.0)
    for fraction in LOADS:
        say(f"{name}, load {fraction:g}")
        loads = [poisson(size.requests, fraction * full, seed) for seed in range(size.seeds)]
        found = {system: measured(run, loads, size) for system, run in systems(cost).items()}
        others = [system for system in found if system not in (AUTO, UNCALIBRATED)]
        row, uncalibrated = {"load": f"{fraction:g}"}, {}
        for figure in SHOWN:
            best = min(others, key=lambda system: found[system][figure])
            ratios = {system: found[system][figure] / found[best][figure] for system in found}
            for system in found:
                found[system][f"{figure}_over_the_best"] = ratios[system]
            if figure in worst:
                worst[figure] = max(worst[figure], ratios[AUTO])
            row[figure.replace("_s", "")] = f"{ratios[AUTO]:.3f}"
            if figure in CLAIMED:
                row[f"over {'' if figure == 'mean_s' else ' '}"] = best
                uncalibrated[f"{figure.removesuffix('_s')}, not calibrated"] = f"{ratios[UNCALIBRATED]:.3f}"
        for system, figures in found.items():
            report.results.append({"curve": name, **asdict(cost), "load": fraction, "system": system, **figures})
        rows.append(row | uncalibrated)
    for figure, ratio in worst.items():
        report.at_most(f"{figure} of {AUTO}, {name}, at its worst load, of the best of the others'", "x", WITHIN, ratio)
    title = f"{name} ({cost.fixed:g} + {cost.row:g} a row): latency of {AUTO} over that of the best of the others"
    report.tables.append(figures_table(title, rows))


def main(
    quick: Annotated[bool, typer.Option(help="few requests and seeds: to see it work, not to quote")] = False,
) -> None:
    """Compares ``auto`` with simple schedules; see the module."""
    size = QUICK if quick else FULL
    configuration = {"load": describe(), "max_rows": MAX_ROWS, "loads": LOADS, **asdict(size)}
    report = TablesReport("policies", quick, configuration, UNFAIR)
    for name, cost in CURVES.items():
        compare(report, name, cost, size)
    report.publish()


if __name__ == "__main__":
    typer.run(main)
