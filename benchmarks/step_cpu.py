"""The fused step with guidance, called from Python, against what a diffusers pipeline does between two forwards."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from diffusers import DDIMScheduler
from harness import Contender, arguments, in_turn
from report import Report

import stepfuse as sf
from stepfuse import _core

#: Shape of the state, and how many times as fast as diffusers the design promises.
CASES = (((1, 3, 32, 32), 40), ((8, 4, 64, 64), 9), ((8, 4, 128, 128), 8))
STEPS, STEP, GUIDANCE = 50, 45, 7.5
CLAIMED = "out="

UNFAIR = (
    "diffusers' torch.cat also makes the next forward's input; stepfuse.step alone does not (in the engine's loop the"
    " fused step does). The contender 'in place + input' adds numpy copies that do.",
    "stepfuse.step uses one thread. diffusers is run with one and with all cores, and the faster is the peer.",
    "diffusers' scheduler checks and supports more than DDIM with fixed options; its options here are the cheapest"
    " (no clipping, no eta, no dict).",
)


class DiffusersStep:
    """What StableDiffusionPipeline does a step, without the network."""

    def __init__(self, latents: torch.Tensor, noise_pred: torch.Tensor) -> None:
        self.scheduler = DDIMScheduler(clip_sample=False)
        self.scheduler.set_timesteps(STEPS)
        self.timestep = self.scheduler.timesteps[STEP]
        self.latents, self.noise_pred = latents, noise_pred

    def __call__(self) -> torch.Tensor:
        """Returns the next latents."""
        latent_model_input = torch.cat([self.latents] * 2)
        latent_model_input = self.scheduler.scale_model_input(latent_model_input, self.timestep)
        noise_pred_uncond, noise_pred_text = self.noise_pred.chunk(2)
        noise_pred = noise_pred_uncond + GUIDANCE * (noise_pred_text - noise_pred_uncond)
        latents: torch.Tensor = self.scheduler.step(noise_pred, self.timestep, self.latents, return_dict=False)[0]
        return latents


def diffusers_name(threads: int) -> str:
    """A contender's name."""
    return f"diffusers, {threads} thread{'s' if threads > 1 else ''}"


def contenders(shape: tuple[int, ...], thread_counts: list[int]) -> dict[str, Contender]:
    """All ways to take one step at this shape."""
    rng = np.random.default_rng(0)
    x, eps, eps_uncond = (rng.standard_normal(shape, dtype=np.float32) for _ in range(3))
    out, state, model_input = np.empty_like(x), x.copy(), np.empty((2, *shape), dtype=np.float32)
    row = sf.samplers.ddim(sf.NoiseSchedule.linear(), steps=STEPS, guidance_scale=GUIDANCE)[STEP]
    theirs = DiffusersStep(torch.from_numpy(x), torch.from_numpy(np.concatenate([eps_uncond, eps])))
    np.testing.assert_allclose(sf.step(x, eps, row, eps_uncond=eps_uncond), theirs().numpy(), atol=1e-5)

    def restore() -> None:
        state[...] = x

    def step_and_input() -> None:
        sf.step(state, eps, row, eps_uncond=eps_uncond, out=state)
        model_input[:] = state

    step = partial(sf.step, x, eps, row, eps_uncond=eps_uncond)
    found = {diffusers_name(count): Contender(theirs, partial(torch.set_num_threads, count)) for count in thread_counts}
    found |= {
        CLAIMED: Contender(partial(step, out=out)),
        "out=None": Contender(step),
        "in place": Contender(partial(sf.step, state, eps, row, eps_uncond=eps_uncond, out=state), restore),
        "in place + input": Contender(step_and_input, restore),
    }
    return found | {f"out=, {isa}": Contender(partial(step, out=out, isa=isa)) for isa in _core.isas()}


def main() -> None:
    """Runs all shapes."""
    quick = arguments(__doc__).quick
    rounds = 3 if quick else 100
    thread_counts = sorted({1, torch.get_num_threads()})
    configuration = {
        "guidance_scale": GUIDANCE,
        "sampler": f"ddim, step {STEP} of {STEPS}",
        "torch_threads": thread_counts,
        "stepfuse_threads": 1,
        "rounds": rounds,
    }
    report = Report("step_cpu", quick, configuration, UNFAIR)
    with torch.no_grad():
        for shape, wanted in CASES:
            samples = in_turn(contenders(shape, thread_counts), rounds=rounds)
            peer = min(map(diffusers_name, thread_counts), key=lambda name: np.median(samples[name]))
            ratios = report.add(str(shape), samples, peer)
            report.at_least(f"step + guidance at {shape}, against diffusers", "x", wanted, ratios[CLAIMED])
    report.publish()


if __name__ == "__main__":
    main()
