"""Whole batches against diffusers around the same weights: its own loop, eager and compiled, and its pipelines."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from common import GpuReport, cubins, options
from networks import SUBJECTS, Predicts, Subject
from timing import Clock, in_turn

import stepfuse as sf
from stepfuse.backends.cuda.trajectories import Trajectories
from stepfuse.integrations.diffusers import compile as compile_pipeline

STEPS = 50
STEPS_OF_LARGE = 10
BUDGET = 3.0  # seconds of rounds a case
EAGER, COMPILED = "diffusers", "diffusers, torch.compile reduce-overhead"
OURS, OURS_COMPILED = "stepfuse", "stepfuse, torch.compile"
PIPELINE, OURS_PIPELINE = "diffusers, its pipeline", "stepfuse, compile(pipe)"

UNFAIR = (
    "diffusers' loop is that of its pipelines without text encoder, decoder and progress bar; its noise is drawn on the"
    " GPU, ours on the host.",
    "Pipelines are without text encoder and decoder, and draw their noise on the GPU; the compiled one is the same.",
    "torch.compile is given to both: to diffusers' network with graphs of its own (reduce-overhead), to ours without.",
    "Times are those of a caller who waits for the result. Compiling and capturing are not part of them.",
    f"Stable Diffusion's network takes {STEPS_OF_LARGE} steps, the other {STEPS}. Both are compiled for one sample.",
)


def scheduler_of(subject: Subject) -> Any:
    """The DDIM of diffusers for a network."""
    from diffusers import DDIMScheduler

    schedule = "scaled_linear" if subject.dtype == torch.bfloat16 else "linear"
    bounds = {"beta_start": 0.00085, "beta_end": 0.012} if schedule == "scaled_linear" else {}
    return DDIMScheduler(beta_schedule=schedule, clip_sample=False, **bounds)


def diffusers_loop(unet: Any, subject: Subject, n: int, steps: int, *, fresh: bool) -> Callable[..., torch.Tensor]:
    """What a pipeline does from noise to latents. ``fresh`` marks each step's beginning for torch's own graphs."""
    scheduler = scheduler_of(subject)
    guided = subject.guidance_scale != 1
    cond = None
    if guided:
        text = torch.from_numpy(subject.conditioning).to("cuda", subject.dtype).expand(n, -1, -1)
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
            conditioning = () if cond is None else (cond,)
            predicted = unet(rows, t, *conditioning, return_dict=False)[0]
            if guided:
                uncond, conditional = predicted.chunk(2)
                predicted = uncond + subject.guidance_scale * (conditional - uncond)
            x = scheduler.step(predicted, t, x, return_dict=False)[0]
        return x

    return draw


def pipeline_of(unet: Any, subject: Subject) -> Any:
    """A pipeline of diffusers around a network: it begins with embeddings, and ends with latents or pixels."""
    from diffusers import DDIMPipeline, StableDiffusionPipeline

    if subject.guidance_scale == 1:
        pipe = DDIMPipeline(unet, scheduler_of(subject))
    else:
        absent = dict.fromkeys(("vae", "text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
        pipe = StableDiffusionPipeline(
            **absent, unet=unet, scheduler=scheduler_of(subject), requires_safety_checker=False
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def pipeline_call(pipe: Any, subject: Subject, n: int, steps: int) -> Callable[..., torch.Tensor]:
    """A call of such a pipeline, from the same seed each time."""
    given: dict[str, Any] = {"batch_size": n, "output_type": "pt"}
    if subject.guidance_scale != 1:
        text = torch.from_numpy(subject.conditioning).to(pipe.device, subject.dtype).expand(n, -1, -1)
        given = {"prompt_embeds": text, "negative_prompt_embeds": torch.zeros_like(text), "output_type": "latent"}
        given["guidance_scale"] = subject.guidance_scale

    def draw(noise: torch.Tensor | None = None) -> torch.Tensor:
        generator = torch.Generator(pipe.device).manual_seed(0)
        drawn: torch.Tensor = pipe(**given, num_inference_steps=steps, generator=generator, return_dict=False)[0]
        return drawn

    return draw


def measure(report: GpuReport, subject: Subject, n: int, rounds: int, *, compile_it: bool) -> None:
    """One network and batch."""
    steps = STEPS_OF_LARGE if subject.is_large else STEPS
    case = f"{subject.name}, {n} samples, {steps} steps{', compiled' if compile_it else ''}"
    module: Predicts = subject.module()
    contenders: dict[str, Callable[..., torch.Tensor]] = {}

    def ours(network: Any) -> Callable[..., torch.Tensor]:
        rows = n * subject.passes
        made = Trajectories.from_torch(network, **subject.info, max_rows=rows, buckets=[rows], cubins=cubins())
        return lambda noise=None: made.sample(n, steps=steps, noise=noise, **subject.arguments)

    def theirs_compiled() -> Callable[..., torch.Tensor]:
        compiled = torch.compile(module.unet, mode="reduce-overhead", dynamic=False)
        return diffusers_loop(compiled, subject, n, steps, fresh=True)

    makers: dict[str, Callable[[], Callable[..., torch.Tensor]]] = {
        EAGER: lambda: diffusers_loop(module.unet, subject, n, steps, fresh=False),
        OURS: lambda: ours(module),
    }
    if not compile_it:
        pipe = pipeline_of(module.unet, subject)
        makers[PIPELINE] = lambda: pipeline_call(pipe, subject, n, steps)
        makers[OURS_PIPELINE] = lambda: pipeline_call(compile_pipeline(pipe), subject, n, steps)
    if compile_it:
        torch._dynamo.reset()
        makers[OURS_COMPILED] = lambda: ours(torch.compile(module, dynamic=False))
        makers[COMPILED] = theirs_compiled
    for name, make in makers.items():
        with report.noting(f"{case}: {name}"):
            contender = make()
            contender()  # compiles
            torch.cuda.synchronize()
            contenders[name] = contender
    samples = in_turn(contenders, Clock(flush=False).wall_seconds, rounds=rounds, warm_ups=1, budget=BUDGET)
    noise = torch.from_numpy(sf.normal(1, (n, *subject.shape)))
    theirs = contenders[EAGER](noise.cuda()).float()
    differences = {
        name: {"relative difference": ((contenders[name](noise.numpy()) - theirs).norm() / theirs.norm()).item()}
        for name in (OURS, OURS_COMPILED)
        if name in contenders
    }
    if {PIPELINE, OURS_PIPELINE} <= contenders.keys():
        want, got = (contenders[name]().float() for name in (PIPELINE, OURS_PIPELINE))
        differences[OURS_PIPELINE] = {"relative difference": ((got - want).norm() / want.norm()).item()}
    ratios = report.add(case, samples, EAGER, extra=differences)
    if not compile_it:
        report.never_slower("diffusers", case, ratios[OURS])
        if {PIPELINE, OURS_PIPELINE} <= ratios.keys():
            report.never_slower("diffusers' pipeline", case, ratios[OURS_PIPELINE] / ratios[PIPELINE])
        if not subject.is_large and n == 1:
            report.at_least(f"against diffusers' loop: {case}", "x", 3, ratios[OURS])
    elif OURS_COMPILED in ratios and COMPILED in ratios:
        ratio = ratios[OURS_COMPILED] / ratios[COMPILED]
        report.never_slower("torch.compile reduce-overhead", case, ratio)
        if not subject.is_large:
            report.at_least(f"against torch.compile reduce-overhead: {case}", "x", 1.15, ratio)


def main() -> int:
    """Runs diffusers' networks; what has to be compiled takes longest and comes last."""
    given = options(__doc__)
    rounds = 3 if given.quick else 10
    report = GpuReport("gpu-diffusers", given, {"rounds": rounds, "steps": STEPS}, UNFAIR)
    _, cifar10, stable_diffusion = SUBJECTS
    with torch.no_grad():
        for subject, n, compile_it in (
            (cifar10, 1, False),
            (stable_diffusion, 1, False),
            (cifar10, 16, False),
            (stable_diffusion, 16, False),
            (cifar10, 1, True),
            (stable_diffusion, 1, True),
        ):
            work = partial(measure, report, subject, n, rounds, compile_it=compile_it)
            report.attempt(f"{subject.name}, {n} samples{', compiled' if compile_it else ''}", work)
    return report.publish()


if __name__ == "__main__":
    sys.exit(main())
