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

import numpy as np
import typer
from harness import Contender, in_turn
from load import DESCRIPTION, GUIDANCE, burst, drawn, new_engine
from report import Report

import stepfuse as sf
from stepfuse.serving.config import Serving

STEPS, INTERVAL = 50, (0.2, 0.8)
REQUESTS, ROUNDS = 64, 5

INTERVAL_UNFAIR = (
    "Guidance on a part of the steps draws other images than guidance on all (Kynkäänniemi et al., 2024).",
    f"Of {STEPS} steps 30 are guided, so 80 of 100 passes are left: a full engine can gain 1.25 and no more.",
)
PADDING_UNFAIR = ("A lone request pays for all rows of each forward; a full engine pays for its last forwards alone.",)


def interval(bundle: str, max_rows: int, threads: int, quick: bool) -> None:
    """What guidance on a part of the steps saves: throughput of a full engine."""
    count, rounds = (8, 2) if quick else (REQUESTS, ROUNDS)
    configuration = {"sampler": f"ddim, {STEPS} steps", "guidance_scale": GUIDANCE, "max_rows": max_rows}
    configuration |= {"guidance_interval": INTERVAL, "requests": count, "threads": threads, "rounds": rounds}
    report = Report("guidance_interval", quick, configuration, INTERVAL_UNFAIR)
    everywhere = [lone_request(seed) for seed in range(count)]
    some = [replace(request, options={"guidance_interval": INTERVAL}) for request in everywhere]
    with new_engine(bundle, threads, Serving(max_rows=max_rows, max_queue=count)) as engine:
        peer, ours = "guided at all steps", f"guided in {INTERVAL}"
        contenders = {peer: Contender(lambda: drawn(engine, everywhere)), ours: Contender(lambda: drawn(engine, some))}
        samples = in_turn(contenders, rounds=rounds)
        passes = {peer: passes_of(engine, everywhere), ours: passes_of(engine, some)}
    extra = {
        name: {"images_per_second": count / float(np.median(seconds)), "passes": passes[name]}
        for name, seconds in samples.items()
    }
    found = report.add(f"{count} requests at once", samples, peer, extra=extra)
    report.at_least(f"throughput with guidance_interval={INTERVAL}", "x", 1.25, found[ours])
    report.publish()


def deterministic(bundle: str, threads: int, quick: bool) -> None:
    """What padding costs: throughput of a full engine, and latency of a lone request."""
    count, rounds = (8, 2) if quick else (REQUESTS, ROUNDS)
    configuration = {"load": DESCRIPTION, "requests": count, "lone_request": f"guided ddim, {STEPS} steps"}
    configuration |= {"threads": threads, "rounds": rounds}
    report = Report("deterministic", quick, configuration, PADDING_UNFAIR)
    mix = [asked.request() for asked in burst(count).asked]
    for max_rows in (8, 64):
        with ExitStack() as stack:
            engines = {
                name: stack.enter_context(
                    new_engine(bundle, threads, Serving(max_rows, max_queue=count, deterministic=padded))
                )
                for name, padded in (("as many rows as asked for", False), ("deterministic", True))
            }
            for case, drawing in ((f"{count} requests at once", mix), ("a lone request", [lone_request(0)])):
                contenders = {name: Contender(partial(drawn, engine, drawing)) for name, engine in engines.items()}
                samples = in_turn(contenders, rounds=rounds)
                extra = {
                    name: {"images_per_second": len(drawing) / float(np.median(seconds))}
                    for name, seconds in samples.items()
                }
                report.add(f"{case}, max_rows {max_rows}", samples, next(iter(engines)), extra=extra)
    report.publish()


def lone_request(seed: int) -> sf.Request:
    """A guided one."""
    return sf.Request(cond=seed % 10, sampler="ddim", steps=STEPS, guidance_scale=GUIDANCE, seed=seed)


def passes_of(engine: sf.Engine, requests: Sequence[sf.Request]) -> int:
    """Rows that these requests need."""
    before = engine.stats()["network_passes"]
    drawn(engine, requests)
    return int(engine.stats()["network_passes"] - before)


def main(
    bundle: Annotated[str, typer.Option(help="embedded model or bundle folder")] = "fashion",
    max_rows: Annotated[int, typer.Option(help="most rows of a forward")] = 64,
    threads: Annotated[int, typer.Option(help="of the network", min=1)] = 2,
    quick: Annotated[bool, typer.Option(help="to see it work")] = False,
) -> None:
    """Measures both."""
    interval(bundle, max_rows, threads, quick)
    deterministic(bundle, threads, quick)


if __name__ == "__main__":
    typer.run(main)
