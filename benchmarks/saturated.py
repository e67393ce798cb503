"""A full engine: what guidance on a part of the steps saves, and what padding every forward to one size costs.

python benchmarks/saturated.py            # 5 minutes on an idle machine
python benchmarks/saturated.py --quick    # few requests and rounds: to see it work, not to quote
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Annotated

import load
import numpy as np
import typer
from harness import Contender, in_turn
from live import new_engine, sample_all
from load import GUIDANCE, burst, describe
from report import Report

import stepfuse as sf
from stepfuse.serving.config import Serving

STEPS, QUICK_STEPS, INTERVAL = 50, 6, (0.2, 0.8)
REQUESTS, ROUNDS = 64, 5
QUICK_REQUESTS, QUICK_ROUNDS, QUICK_LOAD_STEPS = 3, 1, (2, 6)
MAX_ROWS, QUICK_MAX_ROWS = (8, 64), (2, 8)

INTERVAL_UNFAIR = (
    "Guidance on a part of the steps gives other images than guidance on all (Kynkäänniemi et al., 2024).",
    f"Of {STEPS} steps 30 are guided, so 80 of 100 passes are left: a full engine can gain 1.25 and no more.",
)
PADDING_UNFAIR = ("A lone request pays for all rows of each forward; a full engine pays for its last forwards alone.",)


def interval(bundle: str, max_rows: int, threads: int, quick: bool) -> None:
    """What guidance on a part of the steps saves: throughput of a full engine."""
    count, rounds = (QUICK_REQUESTS, QUICK_ROUNDS) if quick else (REQUESTS, ROUNDS)
    steps = QUICK_STEPS if quick else STEPS
    configuration = {"sampler": f"ddim, {steps} steps", "guidance_scale": GUIDANCE, "max_rows": max_rows}
    configuration |= {"guidance_interval": INTERVAL, "requests": count, "threads": threads, "rounds": rounds}
    report = Report("guidance_interval", quick, configuration, INTERVAL_UNFAIR)
    everywhere = [lone_request(seed, steps) for seed in range(count)]
    some = [replace(request, options={"guidance_interval": INTERVAL}) for request in everywhere]
    with new_engine(bundle, threads, Serving(max_rows=max_rows, max_queue=count)) as engine:
        peer, ours = "guided at all steps", f"guided in {INTERVAL}"
        cases = {peer: everywhere, ours: some}
        contenders = {name: Contender(partial(sample_all, engine, requests)) for name, requests in cases.items()}
        samples = in_turn(contenders, rounds=rounds)
        passes = {name: passes_of(engine, requests) for name, requests in cases.items()}
    extra = {
        name: {"images_per_second": count / float(np.median(seconds)), "passes": passes[name]}
        for name, seconds in samples.items()
    }
    found = report.add(f"{count} requests at once", samples, peer, extra=extra)
    report.at_least(f"throughput with guidance_interval={INTERVAL}", "x", 1.25, found[ours])
    report.publish()


def deterministic(bundle: str, threads: int, quick: bool) -> None:
    """What padding costs: throughput of a full engine, and latency of a lone request."""
    count, rounds = (QUICK_REQUESTS, QUICK_ROUNDS) if quick else (REQUESTS, ROUNDS)
    steps, load_steps = (QUICK_STEPS, QUICK_LOAD_STEPS) if quick else (STEPS, load.STEPS)
    configuration = {"load": describe(load_steps), "requests": count, "lone_request": f"guided ddim, {steps} steps"}
    configuration |= {"threads": threads, "rounds": rounds}
    report = Report("deterministic", quick, configuration, PADDING_UNFAIR)
    mix = [asked.request() for asked in burst(count, steps=load_steps).asked]
    for max_rows in QUICK_MAX_ROWS if quick else MAX_ROWS:
        with ExitStack() as stack:
            engines = {
                name: stack.enter_context(
                    new_engine(bundle, threads, Serving(max_rows, max_queue=count, deterministic=padded))
                )
                for name, padded in (("as many rows as asked for", False), ("deterministic", True))
            }
            for case, requests in ((f"{count} requests at once", mix), ("a lone request", [lone_request(0, steps)])):
                contenders = {
                    name: Contender(partial(sample_all, engine, requests)) for name, engine in engines.items()
                }
                samples = in_turn(contenders, rounds=rounds)
                extra = {
                    name: {"images_per_second": len(requests) / float(np.median(seconds))}
                    for name, seconds in samples.items()
                }
                report.add(f"{case}, max_rows {max_rows}", samples, next(iter(engines)), extra=extra)
    report.publish()


def lone_request(seed: int, steps: int) -> sf.Request:
    """A guided request."""
    return sf.Request(cond=seed % 10, sampler="ddim", steps=steps, guidance_scale=GUIDANCE, seed=seed)


def passes_of(engine: sf.Engine, requests: Sequence[sf.Request]) -> int:
    """Rows that these requests need."""
    before = engine.stats().network_passes
    sample_all(engine, requests)
    return engine.stats().network_passes - before


def main(
    bundle: Annotated[str, typer.Option(help="embedded model or bundle folder")] = "fashion",
    max_rows: Annotated[int, typer.Option(help="most rows of a forward")] = 64,
    threads: Annotated[int, typer.Option(help="of the network", min=1)] = 2,
    quick: Annotated[bool, typer.Option(help="to see it work")] = False,
) -> None:
    """Measures both."""
    if quick:
        max_rows, threads = min(max_rows, max(QUICK_MAX_ROWS)), 1
    interval(bundle, max_rows, threads, quick)
    deterministic(bundle, threads, quick)


if __name__ == "__main__":
    typer.run(main)
