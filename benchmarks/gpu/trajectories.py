"""A whole trajectory as one launch against as many replays of the captured forward alone: what all the rest costs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from common import GpuReport, options
from networks import SUBJECTS, Subject
from timing import Clock, in_turn

from stepfuse._core import cuda
from stepfuse.backends.cuda import Trajectories
from stepfuse.backends.cuda_batch import batch_of, frames_of
from stepfuse.request import Compiler, resolve

BATCHES = (1, 16)
STEPS, STEPS_OF_LARGE = 50, 10
LARGE_ROWS = 16  # of the Stable Diffusion network

PEER = "forwards alone"

UNFAIR = (
    "The forwards alone are replays of the same captured graph, launched one by one without waiting: between two of"
    " them the device may wait for the host, which makes the peer slower where a forward is short.",
    "Weights are random, and so is what is drawn; the time does not depend on it.",
    f"Stable Diffusion runs {STEPS_OF_LARGE} steps of batches above one, the others {STEPS}.",
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
    batch = batch_of(trajectories.info, requests, frames)
    with network.ordered():
        trajectory = trajectories._trajectory(frames)

    def prepare() -> None:
        with network.ordered():
            network.begin(batch)
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
    steps = STEPS_OF_LARGE if rows >= LARGE_ROWS and subject.dtype == torch.bfloat16 else STEPS
    module = subject.module()
    unrolled = Trajectories.from_torch(module, **subject.info, max_rows=rows, buckets=[rows])
    # Of the same captured forward.
    loop = Trajectories(unrolled.info, unrolled._network, unrolled._kernels, form="loop")
    made = {"unrolled": unrolled, "loop": loop}
    launches = {form: launch_of(trajectories, subject, n, steps) for form, trajectories in made.items()}
    launches[PEER] = forwards_of(launches["unrolled"], made["unrolled"], rows, steps)
    clock = Clock()
    samples = in_turn(launches, lambda launch: launch.seconds(clock), rounds=rounds)
    case = f"{subject.name}, {n} samples, {steps} steps"
    ratios = report.add(case, samples, PEER)
    best = max(ratios["unrolled"], ratios["loop"])
    report.at_most(f"trajectory, times its forwards alone: {case}", "x", 1.02, 1 / best)
    whole = in_turn(
        {form: (lambda t=t: t.sample(n, steps=steps, **subject.arguments)) for form, t in made.items()},
        Clock(flush=False).wall_seconds,
        rounds=max(3, rounds // 4),
    )
    report.add(f"{case}, with all that the host does", whole, "unrolled")
    difference = made["unrolled"].sample(n, steps=steps, **subject.arguments) - made["loop"].sample(
        n, steps=steps, **subject.arguments
    )
    report.at_most(f"loop against unrolled, largest difference: {case}", "", 0, difference.abs().max().item())


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
