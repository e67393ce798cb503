"""The engine's planner on a virtual clock: policies and row rules, and what an iteration costs as requests pile up.

python benchmarks/simulate.py                          # on this machine's cost curve of the embedded model
python benchmarks/simulate.py --fixed 20 --row 1       # on a given one, in any unit of time
python benchmarks/simulate.py --draw                   # docs/trace.png: which request has which row of each forward
python benchmarks/simulate.py --quick                  # few requests and rounds: to see it work, not to quote
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from load import Asked, Load, Outcome, burst, describe, poisson, say, summary
from report import TablesReport, figures_table, percentiles
from simulated import capacity, median_cost, replayed, serve, static_batches

import stepfuse as sf
from stepfuse.serving.config import CostCurve, Serving

ROOT = Path(__file__).parent.parent
PICTURE, QUICK_PICTURE = ROOT / "docs" / "trace.png", ROOT / "build" / "trace.quick.png"
LOADS = (0.5, 0.8, 0.95)
MAX_ROWS = 64
AGEINGS = (0.0, 0.002, 0.01, 0.1)
STATIC_CAPS = (8, 16, 64)
GPU = CostCurve(20.0, 1.0)
DEADLINE_OVER_ALONE = 5.0
WARM = 100
TRACE_ROWS, TRACE_COST = 12, CostCurve(0.12, 0.012)
#: Arrival, steps and rows of each request of the picture.
TRACE_LOAD = (
    (0.05, 30, 2),
    (0.3, 22, 1),
    (0.75, 12, 2),
    (1.35, 26, 2),
    (1.6, 8, 1),
    (1.85, 12, 2),
    (2.1, 34, 2),
    (2.35, 8, 2),
    (2.6, 10, 1),
    (2.85, 18, 2),
    (3.1, 8, 2),
    (4.1, 14, 1),
    (6.2, 10, 2),
    (7.0, 16, 1),
)
SCALE_TARGETS = {64: 5.0, 1024: 50.0}


@dataclass(frozen=True)
class Size:
    """How much is simulated.

    Attributes:
        seeds: Loads of the comparison by seed.
        seed_requests: Requests of each.
        scale_requests: Requests of the closed bursts.
        rounds: Repeats of each burst.
        curve_rows: Most rows of a forward where the cost curve is measured.
    """

    seeds: int
    seed_requests: int
    scale_requests: tuple[int, ...]
    rounds: int
    curve_rows: int


FULL, QUICK = Size(100, 2000, (1_000, 10_000), 9, MAX_ROWS), Size(2, 300, (200, 2_000), 1, 4)
QUICK_REQUESTS = 300

UNFAIR = (
    "The clock is virtual: a forward takes exactly what the curve says, planning and the step take nothing.",
    "Load is a fraction of the capacity of the engine when all forwards are full.",
    "The deadline policy is replayed as priorities in the order of the deadlines, which are"
    f" {DEADLINE_OVER_ALONE:g} times the time alone after the arrival; none is refused, as the engine would do.",
    "Microseconds an iteration are of planning and bookkeeping with states of one element: staging and the step grow"
    " with the image, and caches are warmer here than beside a network.",
)

System = Callable[[Load], Outcome]


def serve_by_deadline(load: Load, cost: CostCurve, planned: CostCurve | None) -> Outcome:
    """Earliest deadline first. The replay takes no deadlines; priorities in their order make the same order."""
    deadlines = load.at + DEADLINE_OVER_ALONE * load.alone(cost)
    priorities = np.empty(len(deadlines), dtype=int)
    priorities[np.argsort(-deadlines, kind="stable")] = np.arange(len(deadlines))
    serving = Serving(max_rows=MAX_ROWS, policy="fifo", max_queue=len(load.at))
    return replayed(load, cost, serving, planned=planned, priorities=priorities.tolist())[0]


def systems(cost: CostCurve) -> dict[str, System]:
    """All that are compared, by name."""
    found: dict[str, System] = {}
    run = partial(serve, cost=cost, max_rows=MAX_ROWS)
    for rule, planned in (("full rows", None), ("chosen rows", cost)):
        found[f"fifo, {rule}"] = partial(run, planned=planned, policy="fifo")
        for ageing in AGEINGS:
            found[f"shortest {ageing:g}, {rule}"] = partial(run, planned=planned, policy="shortest", ageing=ageing)
        found[f"deadline, {rule}"] = partial(serve_by_deadline, cost=cost, planned=planned)
    for cap in STATIC_CAPS:
        found[f"static batches, {cap}"] = partial(static_batches, cost=cost, max_rows=cap)
    return found | {"one at a time": partial(static_batches, cost=cost, max_rows=0)}


def compare_policies(report: TablesReport, name: str, cost: CostCurve, requests: int) -> None:
    """Adds a table a load, of all systems on one curve."""
    full = capacity(cost, MAX_ROWS)
    for fraction in LOADS:
        load, rows = poisson(requests, fraction * full), []
        mean_alone = float(load.alone(cost).mean())
        for system, run in systems(cost).items():
            found = summary(load, run(load), cost, WARM)
            report.results.append(
                {"section": "policies", "curve": name, **asdict(cost), "load": fraction, "system": system, **found}
            )
            rows.append({"system": system, **cells(found, mean_alone)})
        title = f"{name}, load {fraction:g}, {requests} requests; latencies over the mean time alone"
        report.tables.append(figures_table(title, rows))


def cells(found: dict[str, float], unit: float) -> dict[str, str]:
    """The figures of a summary that a table has room for."""
    latency = ("mean_s", "p50_s", "p95_s", "p99_s", "max_s")
    shown = {name.removesuffix("_s"): f"{found[name] / unit:.4g}" for name in latency}
    shown |= {"slowdown": f"{found['mean_slowdown']:.1f}", "its p95": f"{found['p95_slowdown']:.1f}"}
    shown["> 5"] = f"{found['slower_than_5x_alone']:.1%}"
    shown["rows"] = f"{found['rows_a_forward']:.1f}"
    return shown | {"waste": f"{found['waste']:.0%}", "used": f"{found['utilisation']:.0%}"}


def compare_seeds(report: TablesReport, name: str, cost: CostCurve, size: Size) -> None:
    """Adds how far the measured benchmark's ratios depend on its seed."""
    rate, found = 0.8 * capacity(cost, MAX_ROWS), []
    for seed in range(size.seeds):
        load = poisson(size.seed_requests, rate, seed)
        outcome = serve(load, cost=cost, planned=cost, max_rows=MAX_ROWS, policy="shortest")
        ours = summary(load, outcome, cost, WARM)
        static = summary(load, static_batches(load, cost, MAX_ROWS), cost, WARM)
        alone = summary(load, static_batches(load, cost, 0), cost, WARM)
        ratios = {key: ours[key] / static[key] for key in ("mean_s", "p95_s", "p95_slowdown")}
        found.append({**ratios, "mean_s, of one at a time": ours["mean_s"] / alone["mean_s"]})
    rows = []
    for key, wanted in (("mean_s", 0.65), ("p95_s", 0.8), ("p95_slowdown", 0.3), ("mean_s, of one at a time", 0.4)):
        values = [one[key] for one in found]
        met = float(np.mean(np.array(values) <= wanted))
        spread = percentiles(values)
        claim = {"ratio": key, "seeds": size.seeds, "seed_0": values[0], **spread, "wanted": wanted, "met": met}
        report.results.append({"section": "seeds", "curve": name, **asdict(cost), "load": 0.8, **claim})
        rows.append({"ratio": key, "seed 0": f"{values[0]:.3f}", **{k: f"{v:.3f}" for k, v in spread.items()}})
        rows[-1] |= {"wanted": f"<= {wanted}", "seeds that meet it": f"{met:.0%}"}
    loads = f"{size.seeds} loads of {size.seed_requests} requests"
    title = f"{name}, load 0.8: ours over static batches of {MAX_ROWS}, {loads}"
    report.tables.append(figures_table(title, rows))


def measure_scale(report: TablesReport, cost: CostCurve, size: Size) -> None:
    """Adds what planning and bookkeeping take an iteration, of closed bursts."""
    rows = []
    for slots, wanted in SCALE_TARGETS.items():
        for requests in size.scale_requests:
            mix = burst(requests)
            for policy in ("fifo", "shortest"):
                serving = Serving(max_rows=slots, max_running=slots, policy=policy, max_queue=requests)
                microseconds, iterations = [], 0
                for _ in range(size.rounds + 1):
                    counters = replayed(mix, cost, serving, planned=None)[1]
                    iterations = counters["forwards"]
                    microseconds.append(1e6 * counters["loop_seconds"] / iterations)
                spread = percentiles(microseconds[1:])
                case = {"slots": slots, "requests": requests, "policy": policy}
                case |= {"iterations": iterations, "rounds": size.rounds}
                report.results.append({"section": "scale", **case, "us_an_iteration": spread})
                rows.append({key: str(value) for key, value in case.items()})
                rows[-1] |= {f"us an iteration, {p}": f"{value:.2f}" for p, value in spread.items()}
                if policy == "shortest":
                    claim = f"planning and bookkeeping an iteration, {slots} slots, {requests} requests"
                    report.at_most(claim, "us", wanted, spread["p50"])
    report.tables.append(figures_table("closed bursts, full rows", rows))


def traced() -> dict[str, tuple[Load, Outcome]]:
    """A load small enough for a picture, under ``shortest`` and in static batches."""
    asked = [Asked("ddim", steps, rows, 0, i) for i, (_, steps, rows) in enumerate(TRACE_LOAD)]
    load = Load(asked, np.array([at for at, _, _ in TRACE_LOAD]))
    serving = Serving(max_rows=TRACE_ROWS, policy="shortest")
    ours, _ = replayed(load, TRACE_COST, serving, planned=None, trace=True)
    return {
        "Continuous batching, shortest first: requests join, pause and leave between steps": (load, ours),
        "Static batches: all wait for the slowest member (pale: done, not yet answered), and newcomers for all": (
            load,
            static_batches(load, TRACE_COST, TRACE_ROWS, trace=True),
        ),
    }


def measured_curve(bundle: str, max_rows: int) -> CostCurve:
    """Of this machine and model, one thread."""
    with sf.Engine.load(bundle, threads=1, max_rows=max_rows) as engine:
        engine.warmup(range(1, max_rows + 1))
        return median_cost([engine.calibrate() for _ in range(3)])


def main(
    fixed: Annotated[float, typer.Option(help="of the cost curve, any unit; with --row")] = 0.0,
    row: Annotated[float, typer.Option(help="of the cost curve; 0: measured on this machine")] = 0.0,
    bundle: Annotated[str, typer.Option(help="model whose curve is measured")] = "fashion",
    requests: Annotated[int, typer.Option(help="of each policy comparison")] = 20_000,
    draw: Annotated[bool, typer.Option(help="only draws docs/trace.png")] = False,
    quick: Annotated[bool, typer.Option(help="few requests and rounds: to see it work, not to quote")] = False,
) -> None:
    """Compares policies on the curve and on a GPU-like one; see the module."""
    if draw:
        draw_traces(PICTURE)
        return
    requests, size = (min(requests, QUICK_REQUESTS), QUICK) if quick else (requests, FULL)
    name, cost = ("given", CostCurve(fixed, row)) if row else ("this CPU", measured_curve(bundle, size.curve_rows))
    configuration = {"load": describe(), "max_rows": MAX_ROWS, "requests": requests, "curve": asdict(cost)}
    configuration |= {"not_counted_at_the_beginning": WARM, "rounds": size.rounds, "gpu_like_curve": asdict(GPU)}
    report = TablesReport("simulate", quick, configuration, UNFAIR)
    for title, curve in ((name, cost), ("GPU-like", GPU)):
        title = f"{title} ({curve.fixed:.4g} + {curve.row:.4g} a row)"
        say(title)
        compare_policies(report, title, curve, requests)
        compare_seeds(report, title, curve, size)
    say("scale")
    measure_scale(report, cost, size)
    report.publish()
    if quick:
        draw_traces(QUICK_PICTURE)


def draw_traces(path: Path) -> None:
    """Writes the picture of ``traced``."""
    from plots import draw_trace  # needs matplotlib

    from stepfuse.analysis.figures.style import save_figure

    figure = draw_trace(traced(), f"a forward takes {TRACE_COST.fixed:g} s and {TRACE_COST.row:g} s a row")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_figure(figure, path)
    say(f"picture: {path}")


if __name__ == "__main__":
    typer.run(main)
