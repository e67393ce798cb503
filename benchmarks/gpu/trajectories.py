"""A whole trajectory as one launch against as many replays of the captured forward alone: what all the rest costs."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from common import GpuReport, cubins, options
from networks import SUBJECTS, Subject
from timing import Clock, in_turn
from traces import traced

import stepfuse as sf
from stepfuse._core import cuda
from stepfuse.backends.cuda.static_batch import frames_of, static_batch_of
from stepfuse.backends.cuda.trajectories import Trajectories
from stepfuse.requests.resolution import Compiler, resolve

BATCHES = (1, 16)
STEPS, STEPS_OF_LARGE, STEPS_COMPARED = 50, 10, 20
BUDGET = 4.0  # seconds of rounds a case

PEER = "forwards alone"

Floats = npt.NDArray[np.float32]

UNFAIR = (
    "The forwards alone are replays of the same captured graph, launched one by one without waiting: between two of"
    " them the device may wait for the host, which makes the peer slower where a forward is short.",
    "Weights are random, and so is what is drawn; the time does not depend on it.",
    f"Stable Diffusion runs {STEPS_OF_LARGE} steps, the others {STEPS}.",
    "Convolutions may take TF32, torch's default; the images that are compared with the CPU's may not.",
)


@dataclass(frozen=True)
class Launch:
    """What is timed, on its stream, and what is done before it, which is not."""

    prepare: Callable[[], object]
    launch: Callable[[], object]
    stream: torch.cuda.Stream

    def __call__(self) -> None:
        """Both."""
        self.prepare()
        self.launch()

    def seconds(self, clock: Clock) -> float:
        """Of the device."""
        self.prepare()
        return clock.device_seconds(self.launch, self.stream)


def launch_of(trajectories: Trajectories, subject: Subject, n: int, steps: int) -> Launch:
    """One batch: that it is loaded is not timed."""
    network = trajectories._network
    arguments = {**dict.fromkeys(("eta", "table")), **subject.arguments, "steps": steps, "options": {}}
    requests = resolve(Compiler(trajectories.info), n, **arguments)
    frames = frames_of(requests)
    batch = static_batch_of(trajectories.info, requests, frames)
    with network.ordered():
        trajectory = trajectories._trajectory(frames)

    def prepare() -> None:
        with network.ordered():
            trajectories._memory.begin(batch)
            trajectory.load(network.stream, frames)

    return Launch(prepare, lambda: trajectory.launch(network.stream), network._torch_stream)


def forwards_of(launch: Launch, trajectories: Trajectories, rows: int, steps: int) -> Launch:
    """As many replays of the captured forward, of the same batch."""
    network = trajectories._network
    forward = cuda.GraphExec(network.graphs[rows])

    def replay() -> None:
        for _ in range(steps):
            forward.launch(network.stream)

    return Launch(launch.prepare, replay, launch.stream)


def measure(report: GpuReport, subject: Subject, n: int, rounds: int) -> None:
    """One network and batch."""
    rows = n * subject.passes
    steps = STEPS_OF_LARGE if subject.is_large else STEPS
    case = f"{subject.name}, {n} samples, {steps} steps"
    module = subject.module()
    unrolled = Trajectories.from_torch(module, **subject.info, max_rows=rows, buckets=[rows], cubins=cubins())
    made = {"unrolled": unrolled}
    launches = {"unrolled": launch_of(unrolled, subject, n, steps)}
    launches[PEER] = forwards_of(launches["unrolled"], unrolled, rows, steps)
    with report.noting(f"{case}, loop on the device"):
        # Of the same captured forward.
        loop = Trajectories(unrolled.info, unrolled._network, unrolled._kernels, form="loop")
        launch = launch_of(loop, subject, n, steps)
        launch()
        torch.cuda.synchronize()
        made["loop"], launches["loop"] = loop, launch
    clock = Clock()
    samples = in_turn(launches, lambda launch: launch.seconds(clock), rounds=rounds, budget=BUDGET)
    ratios = report.add(case, samples, PEER)
    best = max(ratios[form] for form in made)
    report.at_most(f"trajectory, times its forwards alone: {case}", "x", 1.02, 1 / best)
    if "loop" in made:
        drawn = [trajectories.sample(n, steps=steps, **subject.arguments) for trajectories in made.values()]
        largest = (drawn[0] - drawn[1]).abs().max().item()
        report.at_most(f"loop against unrolled, largest difference: {case}", "", 0, largest)
    with report.noting(f"{case}, launches and waits"):
        count(report, unrolled, subject, n, steps, case)
    if subject.dtype == torch.float32 and n == 1:
        with report.noting(f"{case}, the CPU's images"):
            compare(report, module, subject)


def count(report: GpuReport, trajectories: Trajectories, subject: Subject, n: int, steps: int, case: str) -> None:
    """Launches and waits of one batch, as the profiler sees them."""
    trace = traced(lambda: trajectories.sample(n, steps=steps, **subject.arguments))
    found = trace.kernels_named("fused_step")
    if len(found) != steps:
        raise RuntimeError(f"the trace must have {steps} steps, got {len(found)}")
    report.at_most(f"launches of a trajectory: {case}", "", 1, len({step.launch for step in found}))
    # The frames of the batch before must have been copied: their memory on the host is about to be overwritten.
    of_frames = sum("Event" in wait.name for wait in trace.waits[:1])
    report.at_most(f"waits in a trajectory: {case}", "", 0, len(trace.waits) - of_frames)


def compare(report: GpuReport, module: torch.nn.Module, subject: Subject) -> None:
    """Images of the same noise, drawn on the GPU in whole float32 and on the CPU."""
    arguments = {**subject.arguments, "steps": STEPS_COMPARED, "eta": 1.0}

    def on_cpu(x: Floats, t: Floats, cond: dict[str, Any]) -> Floats:
        with torch.no_grad():
            conditioning = {name: torch.from_numpy(values) for name, values in cond.items()}
            predicted: Floats = host(torch.from_numpy(x), torch.from_numpy(t), **conditioning).numpy()
        return predicted

    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        trajectories = Trajectories.from_torch(
            module, **subject.info, max_rows=2, buckets=[subject.passes], cubins=cubins()
        )
        got = trajectories.sample(1, **arguments).cpu().numpy()
    finally:
        torch.backends.cudnn.allow_tf32 = before
    host = copy.deepcopy(module).cpu()
    with sf.Engine.from_callable(on_cpu, **subject.info) as engine:
        want = engine.sample(1, **arguments)
    relative = float(np.abs(got - want).max() / np.abs(want).max())
    report.at_most(f"images against the CPU's, share of the largest value: {subject.name}", "", 1e-4, relative)


def main() -> int:
    """Runs all networks and batches."""
    given = options(__doc__)
    rounds = 5 if given.quick else 20
    report = GpuReport("gpu-trajectories", given, {"rounds": rounds, "steps": STEPS}, UNFAIR)
    for subject in SUBJECTS:
        for n in BATCHES:
            report.attempt(f"{subject.name}, {n} samples", partial(measure, report, subject, n, rounds))
    return report.publish()


if __name__ == "__main__":
    sys.exit(main())
