"""Mixed requests that arrive at random: the engine against static batches, one at a time, and diffusers behind a queue.

    python benchmarks/mixed_load.py                                    # all loads and systems: 40 minutes
    python benchmarks/mixed_load.py --loads 0.8 --systems ours,static  # a piece; pieces add up

Raw latencies are kept in ``build/mixed_load/``, a file a load and system, and are not measured again unless
``--fresh``. Capacity and cost curve, which all pieces share, are measured by the first.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
import typer
from load import (
    DESCRIPTION,
    SEED,
    Load,
    Outcome,
    Run,
    burst,
    drawn,
    new_engine,
    poisson,
    replayed,
    say,
    static_batches,
    summary,
)
from plots import draw_load
from queued_diffusers import Diffusers
from report import Report, TablesReport, figures_table

from stepfuse.serving.config import CostCurve, Serving

ROOT = Path(__file__).parent.parent
KEPT = ROOT / "build" / "mixed_load"
CLAIMED_LOAD, WARM = 0.8, 100
REQUESTS, REQUESTS_AT_CLAIMED = 1000, 2000
STATIC_CAPS = (8, 16, 64)
OURS, FIFO, ONE, STATIC, DIFFUSERS = "ours", "fifo", "one", "static", "diffusers"
NAMES = {
    OURS: "stepfuse, shortest first",
    FIFO: "stepfuse, fifo, full rows",
    STATIC: "static batches",
    ONE: "one at a time",
    DIFFUSERS: "diffusers, queued",
}
CAPACITY_REQUESTS = 256

UNFAIR = (
    "Load is a fraction of the capacity of this engine when full. One at a time and diffusers have less, so that the"
    " same arrivals are a higher load to them, and beyond 1 their latencies grow with the length of the run:"
    " 'demand' is the arrival rate over a system's own capacity.",
    "Static batches are kinder than most: a member that is done leaves the forward, none waits for a batch to fill, and"
    " the loop and its fused step are the engine's own.",
    "diffusers runs the same network file in the same runtime with as many threads, but its scheduler is a chain of"
    " torch operators, which on a 28 x 28 image count more than on a large one. It draws one request at a time; a"
    " pipeline could batch requests of equal steps, sampler and guidance, which here are rare.",
    "Shortest first knows how long requests are, and the longest pay for the others: see p99 and the maximum.",
    "Client, queue and engine share one process and machine; a request of a remote client costs more than that.",
    "Slowdown is the latency over the time that the cost curve gives the request on an idle engine, for all systems.",
)

Floats = npt.NDArray[np.float64]


def now_text() -> str:
    """Date and time, as the report writes them."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


@dataclass(frozen=True)
class Setting:
    """What all pieces of a run share.

    Attributes:
        bundle: Name or path of the model.
        max_rows: Most rows of a forward.
        threads: Of the network.
        seed: Of the load.
        cost: Cost curve of the engine, measured.
        diffusers_cost: The same for a step of the peer, with all that it does between two forwards.
        capacity: Requests a second of the saturated engine at full rows, first come, first served.
        capacity_over_curve: The same over what the curve gives it: far from 1, the machine was busy.
        alone_over_curve: Measured latency of a lone request over what the curve gives it, the median of some.
        static_cap: Rows of the static batches that did best in simulation at the claimed load.
        date: When this was measured.
        load_average: Of the machine, before.
    """

    bundle: str
    max_rows: int
    threads: int
    seed: int
    cost: CostCurve
    diffusers_cost: CostCurve
    capacity: float
    capacity_over_curve: float
    alone_over_curve: float
    static_cap: int
    date: str
    load_average: float


def serving_of(system: str, max_rows: int, count: int) -> Serving:
    """How requests share this system's engine; its queue holds all of them."""
    return Serving(max_rows=max_rows, policy="shortest" if system == OURS else "fifo", max_queue=count)


def measure_setting(bundle: str, max_rows: int, threads: int, seed: int) -> Setting:
    """Measures what all pieces share."""
    load_average, date = os.getloadavg()[0], now_text()
    say("measuring capacity and cost, and whether diffusers draws the same images")
    peer, mix = Diffusers(bundle, threads), burst(CAPACITY_REQUESTS, seed)
    with new_engine(bundle, threads, serving_of(FIFO, max_rows, CAPACITY_REQUESTS)) as engine:
        peer.check(engine)
        began = time.perf_counter()
        drawn(engine, [asked.request() for asked in mix.asked])
        capacity = len(mix.asked) / (time.perf_counter() - began)
        cost = sorted((engine.calibrate() for _ in range(3)), key=lambda found: found.seconds(8))[1]
        alone = []
        for asked in mix.asked[:16]:
            began = time.perf_counter()
            drawn(engine, [asked.request()])
            alone.append((time.perf_counter() - began) / asked.alone(cost))
    claimed = poisson(REQUESTS_AT_CLAIMED, CLAIMED_LOAD * capacity, seed)
    means = {cap: summary(claimed, static_batches(claimed, cost, cap), cost, WARM)["mean_s"] for cap in STATIC_CAPS}
    best = min((cap for cap in means if cap <= max_rows), key=lambda cap: means[cap], default=max_rows)
    simulated = replayed(mix, cost, serving_of(FIFO, max_rows, len(mix.at)), planned=None)[0].finished.max()
    return Setting(
        bundle,
        max_rows,
        threads,
        seed,
        cost,
        peer.cost(),
        capacity,
        capacity_over_curve=capacity * float(simulated) / len(mix.at),
        alone_over_curve=float(np.median(alone)),
        static_cap=best,
        date=date,
        load_average=load_average,
    )


def shared_setting(bundle: str, max_rows: int, threads: int, seed: int) -> Setting:
    """What an earlier piece measured, or a new measurement."""
    path = KEPT / "setting.json"
    if not path.exists():
        setting = measure_setting(bundle, max_rows, threads, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(setting), indent=2) + "\n")
        return setting
    kept = json.loads(path.read_text())
    setting = Setting(**kept | {name: CostCurve(**kept[name]) for name in ("cost", "diffusers_cost")})
    if (setting.bundle, setting.max_rows, setting.threads, setting.seed) != (bundle, max_rows, threads, seed):
        raise typer.BadParameter(f"{KEPT} holds a run of other settings: --fresh measures anew")
    return setting


def cap_of(system: str, setting: Setting) -> int:
    """Rows of a static batch: of ``static`` as many as the engine's, of ``static-16`` 16; 0: one request."""
    return int(system.partition("-")[2] or setting.max_rows) if system.startswith(STATIC) else 0


def name_of(system: str, setting: Setting) -> str:
    """For a reader."""
    return f"{NAMES[STATIC]}, {cap_of(system, setting)}" if system.startswith(STATIC) else NAMES[system]


def predicted(system: str, load: Load, setting: Setting) -> Outcome:
    """What the simulation makes of the same arrivals on the measured curve."""
    if system in (OURS, FIFO):
        serving = serving_of(system, setting.max_rows, len(load.at))
        return replayed(load, setting.cost, serving, planned=setting.cost if system == OURS else None)[0]
    cost = setting.diffusers_cost if system == DIFFUSERS else setting.cost
    return static_batches(load, cost, cap_of(system, setting))


def demand(system: str, rate: float, setting: Setting) -> float:
    """The arrival rate over the system's own capacity, that of a simulated burst of the same mix."""
    mix = burst(8192, setting.seed)
    return rate * float(predicted(system, mix, setting).finished.max()) / len(mix.at)


def measure(system: str, load: Load, setting: Setting, label: str) -> tuple[Run, dict[str, float]]:
    """Runs a system; returns the run and what else is known of it."""
    run = Run.of(load, label)
    if system == DIFFUSERS:
        peer = Diffusers(setting.bundle, setting.threads)
        peer.cost(1)
        run.queued(lambda batch: [peer(load.asked[i]) for i in batch], 0)
        run.forwards, run.passes = sum(asked.steps for asked in load.asked), run.held
        return run, {}
    with new_engine(setting.bundle, setting.threads, serving_of(system, setting.max_rows, len(load.at))) as engine:
        if system == OURS:
            engine.calibrate(setting.cost)  # as the simulation is told
        before = engine.stats()
        if system in (OURS, FIFO):
            run.continuous(engine)
        else:
            requests = [asked.request() for asked in load.asked]
            run.queued(lambda batch: drawn(engine, [requests[i] for i in batch]), cap_of(system, setting))
        after = engine.stats()
    spent = {name: after[name] - before[name] for name in before if isinstance(before[name], int | float)}
    run.forwards, run.passes = spent["forwards"], spent["network_passes"]
    outside = spent["step_seconds"] + spent["loop_seconds"]
    if system in (OURS, FIFO):
        run.busy, run.held = spent["network_seconds"] + outside, run.passes + spent["padded_rows"]
    curve = setting.cost.fixed * run.forwards + setting.cost.row * run.passes
    return run, {
        "network_over_curve": spent["network_seconds"] / curve,
        "us_a_forward_outside_the_network": 1e6 * outside / run.forwards,
    }


def kept_path(load: float, system: str, count: int) -> Path:
    """Where a piece is kept."""
    return KEPT / f"{load:g}-{system}-{count}.npz"


def measure_piece(fraction: float, system: str, count: int, setting: Setting) -> None:
    """Measures a system at a load, unless that is done, and keeps the raw times."""
    path = kept_path(fraction, system, count)
    if path.exists():
        return
    load = poisson(count, fraction * setting.capacity, setting.seed)
    facts: dict[str, Any] = {"date": now_text(), "load_average_before": os.getloadavg()[0]}
    label = f"load {fraction:g}, {system}"
    say(f"{label}: {count} requests over {load.at[-1]:.0f} s")
    run, found = measure(system, load, setting, label)
    counts = {name: getattr(run, name) for name in ("busy", "forwards", "passes", "held")}
    np.savez(path, submitted=run.submitted, finished=run.finished, facts=json.dumps(facts | found), **counts)
    say(f"{label}: mean latency {np.mean(run.finished - load.at):.3f} s")


def kept_result(
    fraction: float, system: str, count: int, warm: int, setting: Setting
) -> tuple[dict[str, Any], Floats] | None:
    """Figures and raw latencies of a piece, if it was measured."""
    path = kept_path(fraction, system, count)
    if not path.exists():
        return None
    load = poisson(count, fraction * setting.capacity, setting.seed)
    with np.load(path) as kept:
        counts = [kept[name].item() for name in ("busy", "forwards", "passes", "held")]
        outcome, late = Outcome(kept["finished"], *counts), 1e3 * (kept["submitted"] - load.at)
        facts = json.loads(kept["facts"].item())
    late_ms = {f"p{p}": float(np.percentile(late, p)) for p in (50, 99, 100)}
    result = {
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
    return result, (outcome.finished - load.at)[warm:]


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


def kept_loads(requests: int) -> set[float]:
    """Loads of which anything was measured with so many requests."""
    found = {float(path.stem.split("-")[0]) for path in KEPT.glob("*.npz")}
    return {load for load in found if any(KEPT.glob(f"{load:g}-*-{count_at(load, requests)}.npz"))}


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


def count_at(fraction: float, requests: int) -> int:
    """Requests of a load; 0 asks for the default."""
    return requests or (REQUESTS_AT_CLAIMED if fraction == CLAIMED_LOAD else REQUESTS)


def publish(fractions: Sequence[float], requests: int, warm: int, setting: Setting) -> None:
    """Writes and draws all that has been measured so far."""
    quick = 0 < requests < REQUESTS
    configuration = {**asdict(setting), "load": DESCRIPTION, "not_counted_at_the_beginning": warm}
    report = TablesReport("mixed_load", quick, configuration, UNFAIR)
    systems = [OURS, FIFO, STATIC, *(f"{STATIC}-{cap}" for cap in STATIC_CAPS), ONE, DIFFUSERS]
    latencies: dict[str, Floats] = {}
    for fraction in fractions:
        for system in systems:
            piece = kept_result(fraction, system, count_at(fraction, requests), warm, setting)
            if piece is None:
                continue
            report.results.append(piece[0])
            if fraction == CLAIMED_LOAD:
                latencies[system] = piece[1]
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
    shown = [result for result in report.results if "system" in result]
    if latencies:
        draw_load((KEPT if quick else ROOT / "docs") / "mixed_load.png", CLAIMED_LOAD, latencies, shown)


def split(text: str) -> list[str]:
    """The parts of a list with commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def main(
    loads: Annotated[str, typer.Option(help="fractions of capacity")] = "0.8,0.5,0.95",
    systems: Annotated[str, typer.Option(help=f"of {', '.join(NAMES)}, static-8, static-16; empty: all")] = "",
    requests: Annotated[int, typer.Option(help="a load; 0: 2000 at 0.8 and 1000 at the others")] = 0,
    warm: Annotated[int, typer.Option(help="requests at the beginning that are drawn and not counted")] = WARM,
    max_rows: Annotated[int, typer.Option(help="most rows of a forward")] = 64,
    threads: Annotated[int, typer.Option(help="of the network", min=1)] = 2,
    seed: Annotated[int, typer.Option(help="of the load")] = SEED,
    bundle: Annotated[str, typer.Option(help="embedded model or bundle folder")] = "fashion",
    fresh: Annotated[bool, typer.Option(help="forget what was measured before")] = False,
    report_only: Annotated[bool, typer.Option(help="measure nothing, write what there is")] = False,
) -> None:
    """Measures mixed loads, a piece at a time; see the module."""
    torch.set_num_threads(1)
    known = {*NAMES, *(f"{STATIC}-{cap}" for cap in STATIC_CAPS)}
    if unknown := set(split(systems)) - known:
        raise typer.BadParameter(f"--systems must be of {', '.join(sorted(known))}, got {', '.join(sorted(unknown))}")
    if fresh:
        shutil.rmtree(KEPT, ignore_errors=True)
    setting = shared_setting(bundle, max_rows, threads, seed)
    say(f"capacity {setting.capacity:.2f} requests/s, {setting.cost}, best static batches: {setting.static_cap} rows")
    if not 0.85 < setting.capacity_over_curve < 1.15:
        say(f"not to be quoted: capacity is {setting.capacity_over_curve:.2f} of the curve's. Idle machine? --fresh")
    fractions = [float(part) for part in split(loads)]
    for fraction in () if report_only else fractions:
        chosen = split(systems) or [OURS, STATIC, FIFO, ONE, DIFFUSERS]
        if not systems and fraction == CLAIMED_LOAD and setting.static_cap != max_rows:
            chosen.append(f"{STATIC}-{setting.static_cap}")
        for system in chosen:
            measure_piece(fraction, system, count_at(fraction, requests), setting)
    publish(sorted({*fractions, *kept_loads(requests)}), requests, warm, setting)
    return None


if __name__ == "__main__":
    typer.run(main)
