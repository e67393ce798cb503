"""Whole batches against diffusers' own loop around the same weights: eager, and with torch.compile."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from common import GpuReport, options
from networks import SUBJECTS, Predicts, Subject
from timing import Clock, in_turn

import stepfuse as sf
from stepfuse.backends.cuda import Trajectories

STEPS = 50
STEPS_OF_LARGE = 10
EAGER, COMPILED = "diffusers", "diffusers, torch.compile reduce-overhead"
OURS, OURS_COMPILED = "stepfuse", "stepfuse, torch.compile"

UNFAIR = (
    "diffusers' loop is that of its pipelines without text encoder, decoder and progress bar; its noise is drawn on the"
    " GPU, ours on the host.",
    "torch.compile is given to both: to diffusers' network with graphs of its own (reduce-overhead), to ours without.",
    "Times are those of a caller who waits for the result. Compiling and capturing are not part of them.",
    f"The network of Stable Diffusion is compiled for one sample only, and draws 16 with {STEPS_OF_LARGE} steps.",
)


def diffusers_loop(unet: Any, subject: Subject, n: int, steps: int, *, fresh: bool) -> Callable[..., torch.Tensor]:
    """What a pipeline does from noise to latents. ``fresh`` marks each step's beginning for torch's own graphs."""
    from diffusers import DDIMScheduler

    schedule = "scaled_linear" if subject.dtype == torch.bfloat16 else "linear"
    bounds = {"beta_start": 0.00085, "beta_end": 0.012} if schedule == "scaled_linear" else {}
    scheduler = DDIMScheduler(beta_schedule=schedule, clip_sample=False, **bounds)
    guided = subject.guidance_scale != 1
    cond = None
    if guided:
        text = torch.from_numpy(subject.told).to("cuda", subject.dtype).expand(n, -1, -1)
        cond = torch.cat([torch.zeros_like(text), text])

    def draw(noise: torch.Tensor | None = None) -> torch.Tensor:
        scheduler.set_timesteps(steps, device="cuda")
        if noise is None:
            noise = torch.randn((n, *subject.shape), device="cuda", dtype=subject.dtype)
        x = noise.to(subject.dtype) * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            if fresh:
                torch.compiler.cudagraph_mark_step_begin()
            rows = scheduler.scale_model_input(torch.cat([x] * 2) if guided else x, t)
            told = () if cond is None else (cond,)
            predicted = unet(rows, t, *told, return_dict=False)[0]
            if guided:
                uncond, conditional = predicted.chunk(2)
                predicted = uncond + subject.guidance_scale * (conditional - uncond)
            x = scheduler.step(predicted, t, x, return_dict=False)[0]
        return x

    return draw


def measure(report: GpuReport, subject: Subject, n: int, rounds: int, *, compile_it: bool) -> None:
    """One network and batch."""
    steps = STEPS_OF_LARGE if n > 1 and subject.dtype == torch.bfloat16 else STEPS
    module: Predicts = subject.module()
    contenders: dict[str, Callable[..., torch.Tensor]] = {}
    contenders[EAGER] = diffusers_loop(module.unet, subject, n, steps, fresh=False)

    def ours(network: Any) -> Callable[..., torch.Tensor]:
        rows = n * subject.passes
        made = Trajectories.from_torch(network, **subject.info, max_rows=rows, buckets=[rows])
        return lambda noise=None: made.sample(n, steps=steps, noise=noise, **subject.arguments)

    contenders[OURS] = ours(module)
    if compile_it:
        torch._dynamo.reset()
        contenders[OURS_COMPILED] = ours(torch.compile(module, dynamic=False))
        compiled = torch.compile(module.unet, mode="reduce-overhead", dynamic=False)
        contenders[COMPILED] = diffusers_loop(compiled, subject, n, steps, fresh=True)
    samples = in_turn(contenders, Clock(flush=False).wall_seconds, rounds=rounds)
    case = f"{subject.name}, {n} samples, {steps} steps"
    noise = torch.from_numpy(sf.normal(1, (n, *subject.shape)))
    theirs = contenders[EAGER](noise.cuda()).float()
    differences = {
        name: {"relative difference": ((contenders[name](noise.numpy()) - theirs).norm() / theirs.norm()).item()}
        for name in (OURS, OURS_COMPILED)
        if name in contenders
    }
    against_eager = report.add(case, samples, EAGER, extra=differences)
    report.at_least(f"never slower than diffusers: {case}", "x", 1, against_eager[OURS])
    if subject.dtype == torch.float32 and n == 1:
        best = max(against_eager[name] for name in (OURS, OURS_COMPILED) if name in against_eager)
        report.at_least(f"against diffusers' loop: {case}", "x", 3, best)
    if compile_it:
        ratio = against_eager[OURS_COMPILED] / against_eager[COMPILED]
        report.at_least(f"against torch.compile reduce-overhead: {case}", "x", 1.15, ratio)


def main() -> int:
    """Runs diffusers' networks."""
    given = options(__doc__)
    rounds = 3 if given.quick else 10
    report = GpuReport("gpu-diffusers", given, {"rounds": rounds, "steps": STEPS}, UNFAIR)
    _, cifar10, stable_diffusion = SUBJECTS
    with torch.no_grad():
        for subject, n, compile_it in (
            (cifar10, 1, True),
            (stable_diffusion, 1, True),
            (cifar10, 16, True),
            (stable_diffusion, 16, False),
        ):
            work = partial(measure, report, subject, n, rounds, compile_it=compile_it)
            report.attempt(f"{subject.name}, {n} samples", work)
    return report.publish()


if __name__ == "__main__":
    sys.exit(main())
