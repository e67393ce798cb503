"""The fused step on tensors that outgrow the cache, against a plain copy of as many bytes with as many threads."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from harness import Contender, arguments, in_turn
from report import Report

import stepfuse as sf

MEBIBYTE = 1 << 20
TENSOR_BYTES = 64 * MEBIBYTE
PEER = "np.copyto"

UNFAIR = (
    "Bytes are counted plainly: 3 reads and 1 write a step, 1 read and 1 write a copy. A write to memory that is not"
    " in the cache reads it first, unless the stores bypass the cache: the C library's copy does that, the step with a"
    " separate out= does not, and pays a fourth read that is not counted.",
    "The copy does no arithmetic, and streams two tensors where the step streams three or four.",
    "Threads are Python threads over equal slices for both; starting them is part of the time.",
)


def contenders(threads: int, pool: ThreadPoolExecutor) -> dict[str, Contender]:
    """The step in place and out of place, and the copy, each over ``threads`` slices."""
    rng = np.random.default_rng(0)
    count = TENSOR_BYTES // 4
    x, eps, eps_uncond = (rng.standard_normal(count, dtype=np.float32) for _ in range(3))
    state, out = x.copy(), np.empty_like(x)
    source, target = np.ones(2 * count, dtype=np.float32), np.zeros(2 * count, dtype=np.float32)
    row = sf.samplers.ddim(sf.NoiseSchedule.linear(), steps=50, guidance_scale=7.5)[45]

    def slices(size: int) -> list[slice]:
        return [slice(i * size // threads, (i + 1) * size // threads) for i in range(threads)]

    def over(size: int, work: Callable[[slice], object]) -> Contender:
        parts = slices(size)
        return Contender(lambda: list(pool.map(work, parts)), lambda: np.copyto(state, x), 4 * TENSOR_BYTES)

    return {
        PEER: over(2 * count, lambda s: np.copyto(target[s], source[s])),
        "in place": over(count, lambda s: sf.step(state[s], eps[s], row, eps_uncond[s], out=state[s])),
        "out=": over(count, lambda s: sf.step(x[s], eps[s], row, eps_uncond[s], out=out[s])),
    }


def main() -> None:
    """Runs on one thread and on all cores."""
    quick = arguments(__doc__).quick
    rounds = 2 if quick else 40
    cores = len(os.sched_getaffinity(0))
    configuration = {"tensor_bytes": TENSOR_BYTES, "bytes_moved": 4 * TENSOR_BYTES, "rounds": rounds}
    report = Report("step_bandwidth", quick, configuration, UNFAIR)
    for threads in sorted({1, cores}):
        with ThreadPoolExecutor(threads) as pool:
            entered = contenders(threads, pool)
            moved = {name: contender.bytes_moved for name, contender in entered.items()}
            plural = "s" if threads > 1 else ""
            case = f"{TENSOR_BYTES // MEBIBYTE} MiB a tensor, {threads} thread{plural}"
            ratios = report.add(case, in_turn(entered, rounds=rounds), PEER, bytes_moved=moved)
            for name in ("in place", "out="):
                claim = f"step {name}, share of copy bandwidth, {threads} thread{plural}"
                report.at_least(claim, "%", 80, 100 * ratios[name])
    report.publish()


if __name__ == "__main__":
    main()
