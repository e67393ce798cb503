"""The HTTP service: what it adds to the engine, how soon it is ready, a load beside its peers, and what wears it down.

    python benchmarks/http_load.py                          # all parts: 25 minutes on an idle machine
    python benchmarks/http_load.py --parts overhead,start   # a piece; pieces add up
    python benchmarks/http_load.py --parts load --systems ours,batched
    python benchmarks/http_load.py --quick                  # a few requests: to see it work, not to quote

Each part, and of the load each round of each system, is kept in ``build/http_load/`` and not measured again unless
``--fresh``.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any

import http_alone
import http_rounds
import typer
from http_processes import BATCHED, LOCKED, NAMES, OURS
from http_requests import PREVIEWS, SAMPLER, STREAMED
from http_rounds import Plan
from http_stress import stress
from load import GUIDANCE, GUIDED_SHARE, say
from report import Report, TablesReport, figures_table

ROOT = Path(__file__).parent.parent
KEPT = ROOT / "build" / "http_load"
OVERHEAD, START, LOAD, STRESS = "overhead", "start", "load", "stress"
PARTS = (OVERHEAD, START, LOAD, STRESS)

UNFAIR = (
    "Client and service share the machine's processors: what the client takes (in the table) the service lacks.",
    "Load is a fraction of what stepfuse serves with many clients at once. The peers serve less, so that the same"
    " arrivals are a higher load to them, and beyond 1 their latencies grow with the length of a round: 'demand'.",
    "All peers run the bundle's network file in ONNX Runtime with as many threads. A diffusers pipeline in torch takes"
    " longer. diffusers' schedulers are chains of torch operators, which on a 28 x 28 image count more than on a large"
    " one.",
    "Requests have one sampler, four numbers of steps and two scales, so that static batches find members.",
    f"stepfuse also draws and sends {PREVIEWS} previews of each {STREAMED}th request; the peers have none. Its"
    " files say how they were drawn.",
    "stepfuse runs with --calibrate, so that its default policy knows how long requests are: the longest pay, see p99.",
    "Ray Serve is made for several machines: proxy, replica and its controller share these processors.",
    "In process, the request's picture is encoded as the service encodes it, but nothing is noted of how it was drawn.",
)


def kept(path: Path, measure: Callable[[], Any]) -> Any:
    """What a file holds, or what is measured, with when, if there is none."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        facts = {"date": datetime.now(timezone.utc).isoformat(timespec="seconds"), "load_average": os.getloadavg()[0]}
        path.write_text(json.dumps({**facts, "found": measure()}, indent=2) + "\n")
    return json.loads(path.read_text())["found"]


def add_targets(report: Report, rows: Sequence[Mapping[str, Any]]) -> None:
    """The promises."""
    for row in rows:
        match row:
            case {"part": "overhead"}:
                report.at_most(f"HTTP above engine.submit, {row['case']}, p50", "ms", 2.0, row["overhead_ms"]["p50"])
            case {"part": "start", "system": "ours"}:
                report.at_most("start of the service until it is ready", "s", 1.5, row["seconds"]["p50"])
            case {"part": "stress"}:
                report.at_least("connections held at once", "", row["connections"], row["connections_held"])
                report.at_most(f"requests lost or wrong of {row['requests']}", "", 0, row["lost"])
                report.at_most("counters that differ from what clients got", "", 0, len(row["counters_differ"]))
                grown = row["memory_MB_per_1000_requests"]
                report.at_most("memory that 1,000 requests add, second half", "MB", 1.0, grown)


def tables(rows: Sequence[Mapping[str, Any]]) -> Any:
    """A table a part."""
    by_part = {part: [row for row in rows if row["part"] == part] for part in PARTS}
    titles = {
        OVERHEAD: "one request at a time",
        START: "from the start of the process until /ready",
        LOAD: "open loop, Poisson arrivals; medians over rounds",
        STRESS: "clients of all manners",
    }
    cells = {OVERHEAD: _overhead_cells, START: _start_cells, LOAD: _load_cells, STRESS: _stress_cells}
    return [
        figures_table(titles[part], [cells[part](row) for row in found]) for part, found in by_part.items() if found
    ]


def _overhead_cells(row: Mapping[str, Any]) -> dict[str, str]:
    columns = {
        "over HTTP": "http_ms",
        "engine": "engine_ms",
        "difference": "overhead_ms",
        "/health": "empty_request_ms",
    }
    shown = {"case": f"{row['case']}, {row['rounds']} rounds"}
    return shown | {
        f"{name} ms p50 (p95)": f"{row[key]['p50']:.2f} ({row[key]['p95']:.2f})" for name, key in columns.items()
    }


def _start_cells(row: Mapping[str, Any]) -> dict[str, str]:
    seconds = row["seconds"]
    return {"service": f"{row['name']}, {row['rounds']} rounds"} | {p: f"{seconds[p]:.2f} s" for p in seconds}


def _load_cells(row: Mapping[str, Any]) -> dict[str, str]:
    def ms(name: str) -> str:
        return f"{1e3 * row[f'{name}_s']:.0f}" if f"{name}_s" in row else ""

    shown = {"service": row["name"], "load": f"{row['load']:g}", "demand": f"{row['demand']:.2f}"}
    shown |= {f"{name} ms": ms(name) for name in ("mean", "p50", "p95", "p99")}
    shown |= {"preview": ms("preview_p50"), "its p95": ms("preview_p95")}
    shown |= {"1/s": f"{row['images_per_s']:.1f}", "errors": f"{row['errors']}"}
    return shown | {"client ms": f"{row['client_processor_ms']:.2f}", "late p99": f"{row['late_ms_p99']:.1f}"}


def _stress_cells(row: Mapping[str, Any]) -> dict[str, str]:
    memory = row["memory_MB"]
    return {
        "requests": f"{row['requests']} over {row['connections_held']} connections",
        "seconds": f"{row['seconds']:.0f}",
        "lost": f"{row['lost']}",
        "memory MB": f"{memory['after_a_fifth']:.0f} to {memory['end']:.0f}, most {memory['most']:.0f}",
        "a 1,000 requests": f"{row['memory_MB_per_1000_requests']:+.2f} MB",
    }


def split(text: str, known: Sequence[str], option: str) -> tuple[str, ...]:
    """The parts of a list with commas; all where it is empty."""
    found = tuple(part.strip() for part in text.split(",") if part.strip())
    if unknown := set(found) - set(known):
        raise typer.BadParameter(f"{option} must be of {', '.join(known)}, got {', '.join(sorted(unknown))}")
    return found or tuple(known)


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        requests: Blocks of one client's requests, of each kind, both ways.
        starts: Of each service.
        started: Services that are started for that.
        stressed: Requests of clients of all manners.
        connections: That these keep.
        plan: Of the load.
    """

    requests: int
    starts: int
    started: tuple[str, ...]
    stressed: int
    connections: int
    plan: Plan


def size_of(bundle: str, threads: int, systems: str, rounds: int, quick: bool) -> Size:
    """As the command line has it."""
    if quick:
        few = split(systems or f"{OURS},{BATCHED}", tuple(NAMES), "--systems")
        plan = Plan(bundle, 1, few, (0.5,), rounds=1, seconds=0.5, burst=4, connections=2, steps=(2, 4))
        return Size(2, 1, (OURS,), 60, 12, plan)
    plan = Plan(bundle, threads, split(systems, tuple(NAMES), "--systems"), rounds=rounds)
    return Size(40, 7, (OURS, LOCKED), 10_000, 500, plan)


def measured(size: Size, folder: Path, chosen: Collection[str]) -> list[dict[str, Any]]:
    """Rows of what is chosen, and of what was measured before."""
    bundle, threads = size.plan.bundle, size.plan.threads
    ways: dict[str, Callable[[], Any]] = {
        OVERHEAD: lambda: http_alone.overhead(bundle, threads, size.requests),
        START: lambda: http_alone.start(size.started, bundle, threads, size.starts),
        STRESS: lambda: [stress(bundle, threads, size.stressed, size.connections)],
    }
    rows: list[dict[str, Any]] = []
    for part in PARTS:
        path = folder / f"{part}.json"
        if part == LOAD:
            if part in chosen:
                http_rounds.run(size.plan, folder)
            found = http_rounds.results(replace(size.plan, systems=tuple(NAMES)), folder)
            rows += found + http_rounds.ratios(found)
        elif part in chosen or path.exists():
            say(part)
            rows += kept(path, ways[part])
    return rows


def main(
    parts: Annotated[str, typer.Option(help=f"of {', '.join(PARTS)}; empty: all")] = "",
    systems: Annotated[str, typer.Option(help=f"of the load: {', '.join(NAMES)}; empty: all")] = "",
    rounds: Annotated[int, typer.Option(help="of the load", min=1)] = 3,
    threads: Annotated[int, typer.Option(help="of each network; 0: one a core", min=0)] = 0,
    bundle: Annotated[str, typer.Option(help="embedded model or bundle folder")] = "fashion",
    fresh: Annotated[bool, typer.Option(help="forget what was measured before")] = False,
    report_only: Annotated[bool, typer.Option(help="measure nothing, write what there is")] = False,
    quick: Annotated[bool, typer.Option(help="a few requests: to see it work, not to quote")] = False,
) -> None:
    """Measures the service, a piece at a time; see the module."""
    folder = KEPT.with_suffix(".quick") if quick else KEPT
    if fresh or (quick and not report_only):
        shutil.rmtree(folder, ignore_errors=True)
    size = size_of(bundle, threads, systems, rounds, quick)
    rows = measured(size, folder, () if report_only else split(parts, PARTS, "--parts"))
    plan = asdict(size.plan)
    configuration = {
        "model": plan.pop("bundle"),
        "threads": plan.pop("threads") or "one a core",
        "load": {**plan, "guided": GUIDED_SHARE, "guidance_scale": GUIDANCE, "sampler": SAMPLER},
        "options": {NAMES[system]: options for system, options in http_rounds.OPTIONS.items()},
    }
    report = TablesReport("http_load", quick, configuration, UNFAIR)
    report.results, report.tables = rows, tables(rows)
    add_targets(report, rows)
    report.publish()


if __name__ == "__main__":
    typer.run(main)
