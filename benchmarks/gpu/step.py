"""The fused step on a GPU: its bandwidth against a copy, its latency in a graph, and against diffusers' step."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import numpy as np
import torch
from common import GpuReport, options
from timing import Clock, graph_of, in_turn

import stepfuse as sf
from stepfuse.kernels import fused_step, tune
from stepfuse.kernels.configs import Config, layout_for, layouts_for

MEBIBYTE = 1 << 20
STORAGE = {
    "float32": (torch.float32, torch.float32),
    "bfloat16": (torch.bfloat16, torch.bfloat16),
    "float32, network bfloat16": (torch.float32, torch.bfloat16),
}
SLOTS = 16
SMALL = (1, 4, 64, 64)
IN_A_GRAPH = 100
BUDGET = 3.0  # seconds of rounds a case
RULE, TUNED = "step, by the rule of thumb", "step, tuned"

UNFAIR = (
    "Bytes are counted plainly: a guided step reads x, e_c and e_u and writes x and the two rows of the next forward."
    " The copy reads and writes as many.",
    "Latency: the steps of a graph follow one another, as they do a forward; a graph's own launch is spread over"
    f" {IN_A_GRAPH} of them. diffusers' step is called from Python, as its pipelines do; what the same operators take"
    " without the host is 'torch operators in a graph'.",
)


def guided(slots: int, n: int, state: torch.dtype, network: torch.dtype) -> dict[str, Any]:
    """Arguments of a guided step that writes the next forward's rows."""
    table = sf.samplers.ddim(sf.NoiseSchedule.linear(), steps=50, guidance_scale=7.5)
    row = torch.from_numpy(table.rows[45:46].copy()).cuda().expand(slots, 16).contiguous()
    cond = torch.arange(slots, dtype=torch.int32, device="cuda")
    x = torch.randn(slots, n, device="cuda").to(state)
    prediction, following = (torch.randn(2 * slots, n, device="cuda").to(network) for _ in range(2))
    return {
        "x": x,
        "out": x,
        "prediction": prediction,
        "rows": row,
        "row_cond": cond,
        "row_uncond": cond + slots,
        "next_input": following,
        "next_rows": row,
        "next_cond": cond,
        "next_uncond": cond + slots,
        "next_timestep": torch.zeros(2 * slots, device="cuda"),
    }


def bandwidth(report: GpuReport, rounds: int, mebibytes: int) -> None:
    """Tensors of so many MiB each."""
    for name, (state, network) in STORAGE.items():
        with report.noting(f"bandwidth at {mebibytes} MiB, {name}"):
            one_bandwidth(report, rounds, mebibytes, name, state, network)


def one_bandwidth(
    report: GpuReport, rounds: int, mebibytes: int, name: str, state: torch.dtype, network: torch.dtype
) -> None:
    """Of one kind of storage."""
    n = mebibytes * MEBIBYTE // state.itemsize // SLOTS
    arguments = guided(SLOTS, n, state, network)
    moved = 2 * SLOTS * n * state.itemsize + 4 * SLOTS * n * network.itemsize
    source = torch.randn(moved // 8, device="cuda")
    target = torch.empty_like(source)
    contenders = {"copy": lambda: target.copy_(source), RULE: lambda: fused_step(**arguments)}
    chosen = tuned(report, f"{mebibytes} MiB, {name}", arguments)
    if chosen is not None:
        contenders[TUNED] = lambda: fused_step(**arguments, config=chosen)
    samples = in_turn(contenders, Clock().device_seconds, rounds=rounds, budget=BUDGET)
    bytes_moved = dict.fromkeys(contenders, moved)
    ratios = report.add(f"{mebibytes} MiB a tensor, {name}", samples, "copy", bytes_moved=bytes_moved)
    share = 100 * ratios[TUNED if TUNED in ratios else RULE]
    report.at_least(f"step, share of the copy's bandwidth: {mebibytes} MiB, {name}", "%", 85, share)


def tuned(report: GpuReport, case: str, arguments: dict[str, Any]) -> Config | None:
    """The configuration that is measured to be the fastest, None if that failed."""
    with report.noting(f"{case}, tuning"):
        chosen: Config = tune(**arguments)
        report.remarks.append(f"{case}: tuned to {chosen.block} elements a tile, {chosen.num_warps} warps")
        return chosen
    return None


def layouts(report: GpuReport, rounds: int, slots: int, dtype: torch.dtype) -> None:
    """Every layout in a graph: what tuning chooses among, and what the rule of thumb would take."""
    n = SMALL[1] * SMALL[2] * SMALL[3]
    arguments = guided(slots, n, torch.float32, dtype)
    usual = layout_for(slots, n)
    chosen = tuned(report, f"{slots} slots of {SMALL[1:]}, network {dtype}", arguments)
    graphs = {
        f"{name}{' (rule of thumb)' if name == usual else ''}{' (tuned)' if config == chosen else ''}": graph_of(
            partial(fused_step, **arguments, config=config), IN_A_GRAPH
        ).replay
        for name, config in layouts_for(n).items()
    }
    calls = dict.fromkeys(graphs, IN_A_GRAPH)
    samples = in_turn(graphs, Clock(flush=False).device_seconds, rounds=rounds, calls=calls, budget=BUDGET)
    [peer] = [name for name in graphs if "rule of thumb" in name]
    report.add(f"layouts, {slots} slots of {SMALL[1:]}, float32, network {dtype}", samples, peer)


def latency(report: GpuReport, rounds: int) -> None:
    """At a latent's size, against what a pipeline does with torch."""
    slots, n = SMALL[0], SMALL[1] * SMALL[2] * SMALL[3]
    arguments = guided(slots, n, torch.float32, torch.float32)
    x, e = torch.randn(SMALL, device="cuda"), torch.randn(2 * slots, *SMALL[1:], device="cuda")

    def operators() -> torch.Tensor:
        e_c, e_u = e.chunk(2)
        blended = e_u + 7.5 * (e_c - e_u)
        clean = (x - 0.4 * blended) / 0.9
        following = 0.95 * clean + 0.3 * blended
        return torch.cat([following, following])

    chosen = tuned(report, f"{SMALL}", arguments)
    fused, plain = (graph_of(work, IN_A_GRAPH) for work in (partial(fused_step, **arguments, config=chosen), operators))
    contenders: dict[str, Any] = {"step in a graph": fused.replay, "torch operators in a graph": plain.replay}
    calls = dict.fromkeys(contenders, float(IN_A_GRAPH))
    peer = "torch operators in a graph"
    with report.noting("diffusers' step"):
        contenders["diffusers"], peer = diffusers_step(x, e), "diffusers"
        calls["diffusers"] = IN_A_GRAPH
    samples = in_turn(contenders, Clock(flush=False).wall_seconds, rounds=rounds, calls=calls, budget=BUDGET)
    ratios = report.add(f"{SMALL}, float32", samples, peer)
    seconds = float(np.median(samples["step in a graph"]))
    report.at_most(f"step in a graph at {SMALL}", "us", 4, 1e6 * seconds)
    if peer == "diffusers":
        report.at_least("step in a graph against diffusers' blend, step and cat", "x", 8, ratios["step in a graph"])


def diffusers_step(x: torch.Tensor, e: torch.Tensor) -> Any:
    """A pipeline's work between two forwards, as often as a graph has it."""
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(50, device="cuda")
    timestep = scheduler.timesteps[25]

    def steps() -> None:
        state = x
        for _ in range(IN_A_GRAPH):
            e_c, e_u = e.chunk(2)
            state = scheduler.step(e_u + 7.5 * (e_c - e_u), timestep, state, return_dict=False)[0]
            torch.cat([state, state])

    return steps


def main() -> int:
    """Runs all sizes."""
    given = options(__doc__)
    rounds = 10 if given.quick else 50
    report = GpuReport("gpu-step", given, {"rounds": rounds, "slots": SLOTS}, UNFAIR)
    with torch.no_grad():
        for mebibytes in (64,) if given.quick else (64, 256):
            report.attempt(f"bandwidth at {mebibytes} MiB", partial(bandwidth, report, rounds, mebibytes))
        report.attempt("latency", partial(latency, report, rounds))
        for slots, dtype in ((1, torch.float32), (8, torch.bfloat16), (64, torch.bfloat16)):
            report.attempt(f"layouts of {slots} slots", partial(layouts, report, rounds, slots, dtype))
    return report.publish()


if __name__ == "__main__":
    sys.exit(main())
