"""The engine's loop, which requests join and leave: one image alone, and mixed requests that come at once."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
import torch
from common import GpuReport, cubins, options
from diffusers_loop import scheduler_of
from networks import SUBJECTS, Subject
from timing import Clock, in_turn

import stepfuse as sf
from stepfuse._core import cuda
from stepfuse.backends.cuda.trajectories import Trajectories

ROWS = 16
STEPS, STEPS_OF_LARGE = 50, 20
BLOCKS = 8
BUDGET = 4.0  # seconds of rounds a case
#: A block of requests, of which as many as BLOCKS come at once: their steps, and which of them are guided by how much.
MIXED_STEPS = (5, 8, 10, 12, 15, 18, 20, 25)
MIXED_STEPS_OF_LARGE = (2, 3, 4, 5, 6, 7, 8, 10)
MIXED_SCALES = (1.0, 3.0, 5.0, 7.5, 1.0, 3.0, 5.0, 7.5)

LOOP, TRAJECTORIES, PEER = "loop", "trajectories", "forwards alone"
ALONE, BATCHED = "diffusers, one at a time", "diffusers, batched"

UNFAIR = (
    "The loop's images are on the host when it returns, the others' on the GPU.",
    "The forwards alone are replays of the captured forward, as many as the loop has made. Of mixed requests each is of"
    " the largest, though the loop's last ones are smaller.",
    "diffusers is given the module as the loop calls it. Batched, it is helped: requests of as many steps are a batch,"
    " in any order of arrival, with a guidance scale for each; guided ones and others are apart.",
    f"One at a time diffusers samples one in {BLOCKS} of them, each kind once; its time counts {BLOCKS} times.",
    "A trajectory's batch is as long as its longest request, and requests are taken as they come.",
    "Weights are random. Times are those of a caller who waits; capturing is not part of them.",
)


@dataclass(frozen=True)
class Asked:
    """What one of the mixed requests asks for."""

    steps: int
    scale: float
    seed: int


def mixed(subject: Subject) -> list[Asked]:
    """All of them, in the order in which they come."""
    steps = MIXED_STEPS_OF_LARGE if subject.is_large else MIXED_STEPS
    scales = MIXED_SCALES if subject.passes == 2 else (1.0,) * len(MIXED_SCALES)
    kinds = list(zip(steps, scales, strict=True)) * BLOCKS
    return [Asked(steps, scale, seed) for seed, (steps, scale) in enumerate(kinds)]


def batches(asked: Sequence[Asked]) -> list[list[Asked]]:
    """Requests that diffusers can draw together, in forwards of as many rows as the loop's."""

    def kind(one: Asked) -> tuple[int, bool]:
        return one.steps, one.scale != 1

    found = []
    for (_, guided), group in groupby(sorted(asked, key=kind), key=kind):
        together, most = list(group), ROWS // (1 + guided)
        found += [together[i : i + most] for i in range(0, len(together), most)]
    return found


def diffusers_samples(
    module: Any, subject: Subject, scheduler: Any, steps: int, scales: Sequence[float]
) -> torch.Tensor:
    """One batch, sampled as its pipelines do, each sample with a guidance scale of its own."""
    n, guided = len(scales), any(scale != 1 for scale in scales)
    scheduler.set_timesteps(steps, device="cuda")
    x = torch.randn((n, *subject.shape), device="cuda", dtype=subject.dtype) * scheduler.init_noise_sigma
    scale = torch.tensor(scales, device="cuda", dtype=subject.dtype).reshape(n, *[1] * len(subject.shape))
    cond = {}
    for name, spec in subject.cond.items():
        given, null = (torch.from_numpy(spec.value(name, value)).cuda() for value in (subject.conditioning, None))
        both = [null.expand(n, *spec.shape)] * guided + [given.expand(n, *spec.shape)]
        values = torch.cat(both)
        cond[name] = values.to(subject.dtype) if values.is_floating_point() else values
    for t in scheduler.timesteps:
        rows = scheduler.scale_model_input(torch.cat([x] * 2) if guided else x, t)
        predicted = module(rows, t.float().expand(len(rows)), **cond)
        if guided:
            uncond, conditional = predicted.chunk(2)
            predicted = uncond + scale * (conditional - uncond)
        x = scheduler.step(predicted, t, x, return_dict=False)[0]
    return x


class Contenders:
    """All that draw with one network.

    Args:
        subject: The network.
    """

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.module = subject.module()
        device = sf.Cuda(cubins=cubins(), eager=False)
        self.engine = sf.Engine.from_torch(self.module, **subject.info, device=device, max_rows=ROWS)
        self.trajectories = Trajectories.from_torch(self.module, **subject.info, max_rows=ROWS, cubins=cubins())
        self._replays: dict[int, cuda.GraphExec] = {}

    def forwards(self, rows: int, count: int) -> None:
        """As many replays of the captured forward."""
        network = self.trajectories._network
        if rows not in self._replays:
            self._replays[rows] = cuda.GraphExec(network.graphs[rows])
        for _ in range(count):
            self._replays[rows].launch(network.stream)

    def at_once(self, asked: Sequence[Asked]) -> list[Any]:
        """The loop's images of requests that all come together."""
        arguments = {"cond": self.subject.conditioning, "sampler": "ddim"}
        futures = [
            self.engine.submit(sf.Request(**arguments, steps=one.steps, guidance_scale=one.scale, seed=one.seed))
            for one in asked
        ]
        return [future.result() for future in futures]

    def in_trajectories(self, asked: Sequence[Asked]) -> torch.Tensor:
        """The same in static batches."""
        drawn: torch.Tensor = self.trajectories.sample(
            len(asked),
            cond=self.subject.conditioning if self.subject.cond else None,
            sampler="ddim",
            steps=[one.steps for one in asked],
            guidance_scale=[one.scale for one in asked],
            seed=[one.seed for one in asked],
        )
        return drawn

    def diffusers(self) -> Callable[[int, Sequence[float]], torch.Tensor]:
        """The loop of diffusers around the same module: steps and guidance scales of a batch to its samples.

        Raises:
            ModuleNotFoundError: If it is not installed.
        """
        return partial(diffusers_samples, self.module, self.subject, scheduler_of(self.subject))


def alone(report: GpuReport, made: Contenders, rounds: int) -> None:
    """One image: how long its caller waits."""
    subject = made.subject
    steps = STEPS_OF_LARGE if subject.is_large else STEPS
    arguments = {**subject.arguments, "steps": steps}
    works: dict[str, Callable[[], object]] = {
        LOOP: lambda: made.engine.sample(1, **arguments),
        TRAJECTORIES: lambda: made.trajectories.sample(1, **arguments),
        PEER: lambda: made.forwards(subject.passes, steps),
    }
    with report.noting(f"{subject.name}, one image: diffusers"):
        draw = made.diffusers()
        draw(2, [subject.guidance_scale])
        works[ALONE] = lambda: draw(steps, [subject.guidance_scale])
    samples = in_turn(works, Clock(flush=False).wall_seconds, rounds=rounds, warm_ups=2, budget=BUDGET)
    case = f"one image, {subject.name}, {steps} steps"
    ratios = report.add(case, samples, PEER)
    if ALONE in ratios:
        report.never_slower("diffusers", case, ratios[LOOP] / ratios[ALONE])


def together(report: GpuReport, made: Contenders, rounds: int) -> None:
    """Mixed requests that all come at once: images a second."""
    subject, asked = made.subject, mixed(made.subject)
    before = made.engine.stats()
    made.at_once(asked)
    after = made.engine.stats()
    counted = ("forwards", "network_passes", "loop_seconds", "step_seconds")
    forwards, passes, planning, stepping = (after[name] - before[name] for name in counted)
    works: dict[str, Callable[[], object]] = {
        LOOP: lambda: made.at_once(asked),
        PEER: lambda: made.forwards(ROWS, forwards),
    }
    calls = {}
    case = f"{len(asked)} mixed requests at once, {subject.name}"
    with report.noting(f"{case}: {TRAJECTORIES}"):
        made.in_trajectories(asked)
        works[TRAJECTORIES] = lambda: made.in_trajectories(asked)
    with report.noting(f"{case}: diffusers"):
        draw, groups = made.diffusers(), batches(asked)
        for group in groups:
            draw(2, [one.scale for one in group])
        works[ALONE] = lambda: [draw(one.steps, [one.scale]) for one in asked[: len(asked) // BLOCKS]]
        works[BATCHED] = lambda: [draw(group[0].steps, [one.scale for one in group]) for group in groups]
        calls[ALONE] = 1 / BLOCKS
    clock = Clock(flush=False)
    samples = in_turn(works, clock.wall_seconds, rounds=rounds, calls=calls, warm_ups=0, budget=BUDGET)
    extra = {
        name: {"images a second": len(asked) / float(np.median(seconds))}
        for name, seconds in samples.items()
        if name != PEER
    }
    extra[LOOP] |= {"forwards": forwards, "rows a forward": passes / forwards}
    extra[LOOP] |= {"host us an iteration": 1e6 * (planning + stepping) / forwards}
    ratios = report.add(case, samples, PEER, extra=extra)
    for peer in (ALONE, BATCHED):
        if peer in ratios:
            report.never_slower(peer, case, ratios[LOOP] / ratios[peer])


def measure(report: GpuReport, subject: Subject, rounds: int) -> None:
    """One network."""
    made = Contenders(subject)
    try:
        for case in (alone, together):
            with report.noting(f"{subject.name}, {case.__name__}"):
                case(report, made, rounds)
            report.save()
    finally:
        made.engine.close(abort=True)


def main() -> int:
    """Runs all networks."""
    given = options(__doc__)
    rounds = 3 if given.quick else 20
    configuration: dict[str, Any] = {"rounds": rounds, "rows": ROWS, "steps": STEPS, "steps_of_large": STEPS_OF_LARGE}
    configuration |= {"mixed_steps": MIXED_STEPS, "mixed_steps_of_large": MIXED_STEPS_OF_LARGE}
    configuration |= {"mixed_scales": MIXED_SCALES, "mixed_requests": BLOCKS * len(MIXED_STEPS)}
    report = GpuReport("gpu-serving", given, configuration, UNFAIR)
    with torch.no_grad():
        for subject in SUBJECTS:
            report.attempt(subject.name, partial(measure, report, subject, rounds))
    return report.publish()


if __name__ == "__main__":
    sys.exit(main())
