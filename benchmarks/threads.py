"""Images a second by how threads wait for each other: alone, and where others use the processors, too.

    python benchmarks/threads.py
    python benchmarks/threads.py --quick

The claim is that the default is never far from the best way for the case at hand, which nobody knows when loading.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
from harness import arguments
from report import Report

BATCH = 8
DEFAULT, PEER = "default", "spinning=True (ONNX Runtime's way)"
SETTINGS: Mapping[str, dict[str, Any]] = {
    DEFAULT: {},
    PEER: {"spinning": True},
    "spinning=False": {"spinning": False},
    "threads=1": {"threads": 1},
}
#: Two engines of one process whose networks wait for one pool of threads: what a server of several models could do.
ONE_POOL = "one pool for both"
WORKER = f"""
import json, sys, time
from concurrent.futures import ThreadPoolExecutor
import stepfuse as sf

bundle, settings, count = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
if settings.pop("one_pool", False):
    import onnxruntime
    from stepfuse.backends.host import onnxruntime as host

    def in_one_pool(entries, own=host.session_options):
        options = own(entries)
        options.use_per_session_threads = False
        return options

    onnxruntime.set_default_logger_severity(3)  # it warns that numbers of threads are left out
    onnxruntime.set_global_thread_pool_sizes(host.held_to(), 1)
    host.session_options = in_one_pool
engines = [sf.Engine.load(bundle, **settings) for _ in range(count)]

def sample(engine, seconds):
    images, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        engine.sample({BATCH}, seed=images)
        images += {BATCH}
    return images / (time.perf_counter() - began)

with ThreadPoolExecutor(count) as threads:
    for line in sys.stdin:
        print(sum(threads.map(sample, engines, [float(line)] * count)), flush=True)
"""
BUSY = "while True: pass"
#: Name, processes that sample at once (0: one with two engines), and whether another keeps one processor busy.
CASES = (
    ("alone", 1, False),
    ("two processes that sample", 2, False),
    ("beside a busy process", 1, True),
    ("two engines of one process", 0, False),
)

UNFAIR = (
    "The network is small, as are the parts that its threads wait for: a large one loses less by waiting asleep.",
    "Beside a busy process no way can have all processors; on two, threads=1 needs just what is free.",
    "One pool waits as ONNX Runtime chooses: how long its threads wait actively cannot be said of it.",
)


class Worker:
    """A process that samples with one or several engines when asked to, and sleeps between."""

    def __init__(self, bundle: str, settings: Mapping[str, Any], engines: int = 1) -> None:
        command = [sys.executable, "-c", WORKER, bundle, json.dumps(settings), str(engines)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)

    def begin(self, seconds: float) -> None:
        """Has it sample for so long."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{seconds}\n")

    def rate(self) -> float:
        """Images a second, once it is done."""
        assert self._process.stdout is not None
        return float(self._process.stdout.readline())

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()


def seconds_an_image(workers: Mapping[str, Sequence[Worker]], *, rounds: int, seconds: float) -> dict[str, list[float]]:
    """Of all workers of a contender together, the contenders in turn, a shuffled order in every round."""
    samples: dict[str, list[float]] = {name: [] for name in workers}
    order, shuffle = list(workers), random.Random(0).shuffle
    for index in range(rounds + 1):  # the first one warms up
        shuffle(order)
        for name in order:
            for worker in workers[name]:
                worker.begin(seconds)
            rate = sum(worker.rate() for worker in workers[name])
            samples[name] += [1 / rate] * (index > 0)
    return samples


@contextmanager
def busy(is_busy: bool) -> Iterator[None]:
    """Beside a process that keeps one processor busy."""
    process = subprocess.Popen([sys.executable, "-c", BUSY]) if is_busy else None
    try:
        yield
    finally:
        if process is not None:
            process.kill()
            process.wait()


def main() -> None:
    """Runs all cases."""
    options = arguments(__doc__, bundle=True)
    rounds, seconds = (1, 0.2) if options.quick else (7, 2.0)
    facts = {"model": options.bundle, "batch": BATCH, "rounds": rounds, "seconds": seconds}
    report = Report("threads", options.quick, facts, UNFAIR)
    with ExitStack() as stack:
        workers: dict[str, list[Worker]] = {}
        for name, settings in SETTINGS.items():
            workers[name] = [Worker(options.bundle, settings) for _ in range(2)]
            for worker in workers[name]:
                stack.callback(worker.close)
        of_models = {}
        for name, settings in {**SETTINGS, ONE_POOL: {"one_pool": True}}.items():
            of_models[name] = [Worker(options.bundle, settings, engines=2)]
            stack.callback(of_models[name][0].close)
        for case, count, is_busy in CASES:
            with busy(is_busy):
                used = {name: of_name[:count] for name, of_name in workers.items()} if count else of_models
                samples = seconds_an_image(used, rounds=rounds, seconds=seconds)
            images = {name: {"images_per_second": 1 / float(np.median(one))} for name, one in samples.items()}
            ratios = report.add(case, samples, PEER, extra=images)
            report.at_least(f"{case}: the default over the best", "x", 0.75, ratios[DEFAULT] / max(ratios.values()))
    report.publish()


if __name__ == "__main__":
    main()
