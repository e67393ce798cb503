"""Mixed requests that arrive at random: the engine against static batches, one at a time, and diffusers behind a queue.

    python benchmarks/mixed_load.py                                    # all loads and systems: 40 minutes
    python benchmarks/mixed_load.py --loads 0.8 --systems ours,static  # a piece; pieces add up
    python benchmarks/mixed_load.py --quick                            # few requests: to see it work, not to quote
    python benchmarks/mixed_load.py --draw                             # docs/mixed_load.png, of the committed JSON

Raw latencies are kept in ``build/mixed_load/``, a file a load and system, and are not measured again unless
``--fresh``. Capacity and cost curve, which all pieces share, are measured by the first.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from load import SEED, Outcome, describe, poisson, say, summary
from mixed_systems import (
    AUTO,
    CLAIMED_LOAD,
    DIFFUSERS,
    FIFO,
    FULL,
    NAMES,
    ONE,
    OURS,
    QUICK,
    STATIC,
    STATIC_CAPS,
    Setting,
    Size,
    demand,
    measure,
    measure_setting,
    name_of,
    now_text,
    predicted,
)
from plots import draw_load
from report import RESULTS, Report, TablesReport, figures_table

from stepfuse.analysis.figures.style import save_figure
from stepfuse.serving.config import CostCurve

ROOT = Path(__file__).parent.parent
PICTURE = ROOT / "docs" / "mixed_load.png"
KEPT = ROOT / "build" / "mixed_load"
QUICK_KEPT = ROOT / "build" / "mixed_load.quick"
QUICK_LOADS, QUICK_MAX_ROWS = "0.8", 8

UNFAIR = (
    "Load is a fraction of the capacity of this engine when full. One at a time and diffusers have less, so that the"
    " same arrivals are a higher load to them, and beyond 1 their latencies grow with the length of the run:"
    " 'demand' is the arrival rate over a system's own capacity.",
    "Static batches are kinder than most: a member that is done leaves the forward, none waits for a batch to fill, and"
    " the loop and its fused step are the engine's own.",
    "diffusers runs the same network file in the same runtime with as many threads, but its scheduler is a chain of"
    " torch operators, which on a 28 x 28 image count more than on a large one. It takes one request at a time; a"
    " pipeline could batch requests of equal steps, sampler and guidance, which here are rare.",
    "Shortest first knows how long requests are, and the longest pay for the others: see p99 and the maximum.",
    "Client, queue and engine share one process and machine; a request of a remote client costs more than that.",
    "Slowdown is the latency over the time that the cost curve gives the request on an idle engine, for all systems.",
)


def shared_setting(folder: Path, size: Size, bundle: str, max_rows: int, threads: int, seed: int) -> Setting:
    """What an earlier piece measured, or a new measurement."""
    path = folder / "setting.json"
    if not path.exists():
        setting = measure_setting(size, bundle, max_rows, threads, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(setting), indent=2) + "\n")
        return setting
    kept = json.loads(path.read_text())
    given = {
        "size": json.loads(json.dumps(asdict(size))),
        "bundle": bundle,
        "max_rows": max_rows,
        "threads": threads,
        "seed": seed,
    }
    if any(kept.get(name) != value for name, value in given.items()):
        raise typer.BadParameter(f"{folder} holds a run of other settings: --fresh measures anew")
    curves = {name: CostCurve(**kept[name]) for name in ("cost", "diffusers_cost")}
    return Setting(**kept | curves | {"size": size})


def kept_path(folder: Path, load: float, system: str, count: int) -> Path:
    """Where a piece is kept."""
    return folder / f"{load:g}-{system}-{count}.npz"


def measure_piece(folder: Path, fraction: float, system: str, count: int, setting: Setting) -> None:
    """Measures a system at a load, unless that is done, and keeps the raw times."""
    path = kept_path(folder, fraction, system, count)
    if path.exists():
        return
    load = poisson(count, fraction * setting.capacity, setting.seed, setting.size.steps)
    facts: dict[str, Any] = {"date": now_text(), "load_average_before": os.getloadavg()[0]}
    label = f"load {fraction:g}, {system}"
    say(f"{label}: {count} requests over {load.at[-1]:.0f} s")
    run, found = measure(system, load, setting, label)
    counts = {name: getattr(run, name) for name in ("busy", "forwards", "passes", "held")}
    np.savez(path, submitted=run.submitted, finished=run.finished, facts=json.dumps(facts | found), **counts)
    say(f"{label}: mean latency {np.mean(run.finished - load.at):.3f} s")


def kept_result(
    folder: Path, fraction: float, system: str, count: int, warm: int, setting: Setting
) -> dict[str, Any] | None:
    """Figures of a piece, if it was measured."""
    path = kept_path(folder, fraction, system, count)
    if not path.exists():
        return None
    load = poisson(count, fraction * setting.capacity, setting.seed, setting.size.steps)
    with np.load(path) as kept:
        counts = [kept[name].item() for name in ("busy", "forwards", "passes", "held")]
        outcome, late = Outcome(kept["finished"], *counts), 1e3 * (kept["submitted"] - load.at)
        facts = json.loads(kept["facts"].item())
    late_ms = {f"p{p}": float(np.percentile(late, p)) for p in (50, 99, 100)}
    return {
        "load": fraction,
        "system": system,
        "name": name_of(system, setting),
        "requests": count,
        "arrivals_per_s": fraction * setting.capacity,
        "demand": demand(system, fraction * setting.capacity, setting),
        "measured": summary(load, outcome, setting.cost, warm),
        "predicted": summary(load, predicted(system, load, setting), setting.cost, warm),
        "submitted_late_ms": late_ms,
        **facts,
    }


def cells(result: dict[str, Any]) -> dict[str, str]:
    """A row of the table."""
    measured, expected = result["measured"], result["predicted"]
    shown = {
        "system": result["name"],
        "demand": f"{result['demand']:.2f}{'*' if result['demand'] >= 1 else ' '}",
        "mean s": f"{measured['mean_s']:.2f} ({expected['mean_s']:.2f})",
        "p50": f"{measured['p50_s']:.2f}",
        "p95": f"{measured['p95_s']:.2f} ({expected['p95_s']:.2f})",
        "p99": f"{measured['p99_s']:.2f}",
        "slowdown": f"{measured['mean_slowdown']:.1f}",
        "its p95": f"{measured['p95_slowdown']:.1f} ({expected['p95_slowdown']:.1f})",
        "1/s": f"{measured['images_per_s']:.2f}",
        "rows": f"{measured['rows_a_forward']:.1f}",
    }
    return shown | {"waste": f"{measured['waste']:.0%}", "used": f"{measured['utilisation']:.0%}"}


def ratios(results: Sequence[dict[str, Any]], fraction: float, kind: str) -> dict[str, dict[str, float]]:
    """Ours over each peer at a load; of throughput, the peer's makespan over ours."""
    at_load = {result["system"]: result[kind] for result in results if result["load"] == fraction}
    ours = at_load.pop(OURS, None)
    found = {}
    for peer, figures in at_load.items() if ours else ():
        found[peer] = {name: ours[name] / figures[name] for name in ("mean_s", "p95_s", "p99_s", "p95_slowdown")}
        found[peer]["images_per_s"] = figures["makespan_s"] / ours["makespan_s"]
    return found


def kept_loads(folder: Path, counts: Callable[[float], int]) -> set[float]:
    """Loads of which anything was measured with as many requests as ``counts`` gives."""
    found = {float(path.stem.split("-")[0]) for path in folder.glob("*.npz")}
    return {load for load in found if any(folder.glob(f"{load:g}-*-{counts(load)}.npz"))}


def add_targets(report: Report, found: dict[str, dict[str, float]]) -> None:
    """The promises at the claimed load."""
    at = f"at load {CLAIMED_LOAD:g}"
    if STATIC in found:
        static = found[STATIC]
        report.at_most(f"mean latency {at}, of static batches'", "x", 0.65, static["mean_s"])
        report.at_most(f"p95 latency {at}, of static batches'", "x", 0.8, static["p95_s"])
        report.at_most(f"p95 slowdown {at}, of static batches'", "x", 0.3, static["p95_slowdown"])
        report.at_least(f"throughput {at}, of static batches'", "x", 1.0, static["images_per_s"])
    if ONE in found:
        report.at_most(f"mean latency {at}, of one at a time's", "x", 0.4, found[ONE]["mean_s"])


def count_at(fraction: float, requests: int, size: Size) -> int:
    """Requests of a load; 0 asks for the default."""
    return requests or (size.claimed_requests if fraction == CLAIMED_LOAD else size.requests)


def publish(
    folder: Path,
    fractions: Sequence[float],
    counts: Callable[[float], int],
    warm: int,
    setting: Setting,
    quick: bool,
) -> None:
    """Writes all that has been measured so far, and draws it."""
    configuration = {**asdict(setting), "load": describe(setting.size.steps), "not_counted_at_the_beginning": warm}
    report = TablesReport("mixed_load", quick, configuration, UNFAIR)
    systems = [AUTO, OURS, FIFO, STATIC, *(f"{STATIC}-{cap}" for cap in STATIC_CAPS), ONE, DIFFUSERS]
    for fraction in fractions:
        for system in systems:
            piece = kept_result(folder, fraction, system, counts(fraction), warm, setting)
            if piece is None:
                continue
            report.results.append(piece)
    for fraction in fractions:
        rows = [result for result in report.results if result["load"] == fraction]
        if not rows:
            continue
        title = f"load {fraction:g}: {rows[0]['requests']} requests; measured (predicted); demand * is beyond capacity"
        report.tables.append(figures_table(title, [cells(row) for row in rows]))
        both = {kind: ratios(report.results, fraction, kind) for kind in ("measured", "predicted")}
        report.results.append({"load": fraction, "ours_over": both})
        if fraction == CLAIMED_LOAD:
            add_targets(report, both["measured"])
    report.publish()
    draw(folder / PICTURE.name if quick else PICTURE, report.results)


def draw(path: Path, results: Sequence[dict[str, Any]]) -> None:
    """Writes the picture of a report's results, if they have the claimed load."""
    shown = [result for result in results if "system" in result]
    if any(result["load"] == CLAIMED_LOAD for result in shown):
        path.parent.mkdir(parents=True, exist_ok=True)
        save_figure(draw_load(CLAIMED_LOAD, shown), path)


def split(text: str) -> list[str]:
    """The parts of a list with commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def main(
    loads: Annotated[str, typer.Option(help="fractions of capacity")] = "0.8,0.5,0.95",
    systems: Annotated[str, typer.Option(help=f"of {', '.join(NAMES)}, static-8, static-16; empty: all")] = "",
    requests: Annotated[int, typer.Option(help="a load; 0: 2000 at 0.8 and 1000 at the others")] = 0,
    warm: Annotated[int | None, typer.Option(help="requests at the beginning that are run and not counted")] = None,
    max_rows: Annotated[int, typer.Option(help="most rows of a forward")] = 64,
    threads: Annotated[int, typer.Option(help="of the network", min=1)] = 2,
    seed: Annotated[int, typer.Option(help="of the load")] = SEED,
    bundle: Annotated[str, typer.Option(help="embedded model or bundle folder")] = "fashion",
    fresh: Annotated[bool, typer.Option(help="forget what was measured before")] = False,
    report_only: Annotated[bool, typer.Option(help="measure nothing, write what there is")] = False,
    quick: Annotated[bool, typer.Option(help="one load of few requests: to see it work, not to quote")] = False,
    redraw: Annotated[bool, typer.Option("--draw", help="measure nothing, only draw docs/mixed_load.png")] = False,
) -> None:
    """Measures mixed loads, a piece at a time; see the module."""
    if redraw:
        draw(PICTURE, json.loads((RESULTS / "mixed_load.json").read_text())["results"])
        return
    torch.set_num_threads(1)
    known = {*NAMES, *(f"{STATIC}-{cap}" for cap in STATIC_CAPS)}
    if unknown := set(split(systems)) - known:
        raise typer.BadParameter(f"--systems must be of {', '.join(sorted(known))}, got {', '.join(sorted(unknown))}")
    folder, size = (QUICK_KEPT, QUICK) if quick else (KEPT, FULL)
    if quick:
        loads, max_rows, threads, fresh = QUICK_LOADS, min(max_rows, QUICK_MAX_ROWS), 1, not report_only
    if fresh:
        shutil.rmtree(folder, ignore_errors=True)
    setting = shared_setting(folder, size, bundle, max_rows, threads, seed)
    say(f"capacity {setting.capacity:.2f} requests/s, {setting.cost}, best static batches: {setting.static_cap} rows")
    if not quick and not 0.85 < setting.capacity_over_curve < 1.15:
        say(f"not to be quoted: capacity is {setting.capacity_over_curve:.2f} of the curve's. Idle machine? --fresh")
    fractions = [float(part) for part in split(loads)]
    counts = partial(count_at, requests=requests, size=size)
    for fraction in () if report_only else fractions:
        chosen = split(systems) or [AUTO, OURS, STATIC, FIFO, ONE, DIFFUSERS]
        if not systems and fraction == CLAIMED_LOAD and setting.static_cap != max_rows:
            chosen.append(f"{STATIC}-{setting.static_cap}")
        for system in chosen:
            measure_piece(folder, fraction, system, counts(fraction), setting)
    fractions = sorted({*fractions, *kept_loads(folder, counts)})
    not_counted = size.warm if warm is None else warm
    publish(folder, fractions, counts, not_counted, setting, quick or 0 < requests < FULL.requests)


if __name__ == "__main__":
    typer.run(main)
