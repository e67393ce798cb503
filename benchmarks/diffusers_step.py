"""The step of our drop-in schedulers, called as a diffusers pipeline calls it, against diffusers' own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import diffusers
import torch
from harness import Contender, arguments, in_turn
from report import Report

from stepfuse.integrations import diffusers as ours

SHAPES = ((1, 4, 64, 64), (8, 4, 64, 64))
STEPS, STEP = 20, 10
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "DDIM": ("DDIMScheduler", {"clip_sample": False}, {}),
    "DDIM, eta 1": ("DDIMScheduler", {"clip_sample": False}, {"eta": 1.0}),
    "DDPM": ("DDPMScheduler", {"clip_sample": True}, {}),
    "LCM": ("LCMScheduler", {}, {}),
    "DPM-Solver++ 2M": ("DPMSolverMultistepScheduler", {}, {}),
}

UNFAIR = (
    "One call is repeated at one timestep: the row that ours makes at the first call of a timestep, about 0.1 ms, is"
    " made in the warm-up.",
    "Ours uses one thread. diffusers is run with one and with all cores, and the faster is the peer.",
    "Where there is noise, both make it with torch from the same generator, which is most of what ours takes.",
)


def stepper(library: Any, name: str, config: dict[str, Any], options: dict[str, Any], shape: tuple[int, ...]) -> Any:
    """One step in the middle of a run, as often as it is called."""
    scheduler = getattr(library, name)(**config)
    scheduler.set_timesteps(STEPS)
    generator = torch.Generator().manual_seed(0)
    x, prediction = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    for t in scheduler.timesteps[:STEP]:
        scheduler.step(prediction, t, x, generator=generator, **options)
    timestep = scheduler.timesteps[STEP]

    def step() -> torch.Tensor:
        if hasattr(scheduler, "_step_index"):
            scheduler._step_index = STEP
        state: torch.Tensor = scheduler.step(
            prediction, timestep, x, generator=generator, return_dict=False, **options
        )[0]
        return state

    return step


def contenders(case: str, shape: tuple[int, ...], thread_counts: list[int]) -> dict[str, Contender]:
    """Both libraries at one step, which must come out the same."""
    make: Callable[[Any], Any] = partial(stepper, shape=shape)
    name, config, options = CASES[case]
    theirs, mine = (make(library, name, config, options) for library in (diffusers, ours))
    torch.testing.assert_close(mine(), theirs(), rtol=0, atol=1e-4)
    found = {f"diffusers, threads: {n}": Contender(theirs, partial(torch.set_num_threads, n)) for n in thread_counts}
    return found | {"stepfuse": Contender(mine, partial(torch.set_num_threads, 1))}


def main() -> None:
    """Runs all schedulers and shapes."""
    quick = arguments(__doc__).quick
    rounds = 3 if quick else 100
    thread_counts = sorted({1, torch.get_num_threads()})
    configuration = {"step": f"{STEP} of {STEPS}", "torch_threads": thread_counts, "rounds": rounds}
    report = Report("diffusers_step", quick, configuration, UNFAIR)
    with torch.no_grad():
        for case in CASES:
            for shape in SHAPES:
                samples = in_turn(contenders(case, shape, thread_counts), rounds=rounds)
                peer = min(
                    (name for name in samples if name != "stepfuse"),
                    key=lambda name: sorted(samples[name])[rounds // 2],
                )
                report.add(f"{case} at {shape}", samples, peer)
    report.publish()


if __name__ == "__main__":
    main()
