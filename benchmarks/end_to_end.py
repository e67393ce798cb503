"""The embedded model, 50 guided DDIM steps: the engine against the same weights in torch with diffusers' scheduler."""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import torch
from diffusers import DDIMScheduler
from harness import Contender, arguments, in_turn
from onnx import numpy_helper
from report import Report

import stepfuse as sf

# The network as a torch module belongs to the training example, which is no package.
sys.path.append(str(Path(__file__).parent.parent / "examples" / "fashion"))
from model import NULL_CLASS, Denoiser

STEPS, GUIDANCE = 50, 3.0
CASES, QUICK_CASES, QUICK_STEPS = (16, 1), (2, 1), 5
SETTLE_SECONDS = 0.02
MAX_DIFFERENCE = 1e-3

UNFAIR = (
    "ONNX Runtime fuses and lays out the network ahead of time; torch runs it eagerly, as a pipeline does unless it is"
    " compiled. Most of the difference is the network, not the loop.",
    "The network is small (28 x 28 pixels): the larger a network, the less a sampler's overhead counts.",
    "The torch side is diffusers' loop written out, without a pipeline's checks, progress bar and callbacks.",
)

Images = npt.NDArray[np.float32]


class TorchPipeline:
    """The same weights in eager torch, sampled as a diffusers pipeline does."""

    def __init__(self, bundle: Path, memory_format: torch.memory_format, steps: int) -> None:
        initializers = onnx.load(bundle / "denoiser.onnx").graph.initializer
        arrays = {tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy()) for tensor in initializers}
        self.network = Denoiser().eval()
        names = [name for name, _ in self.network.named_parameters()]
        self.network.load_state_dict({name: arrays[name] for name in names}, strict=False)
        self.network.to(memory_format=memory_format)
        self.scheduler = DDIMScheduler(clip_sample=False)
        self.steps = steps

    @torch.inference_mode()
    def __call__(self, noise: Images, label: int) -> Images:
        """Images of one class, (n, 1, 28, 28), from this starting noise."""
        self.scheduler.set_timesteps(self.steps)
        latents, n = torch.from_numpy(noise), len(noise)
        labels = torch.tensor([NULL_CLASS] * n + [label] * n)
        for t in self.scheduler.timesteps:
            model_input = self.scheduler.scale_model_input(torch.cat([latents] * 2), t)
            uncond, cond = self.network(model_input, t.float().expand(2 * n), labels).chunk(2)
            noise_pred = uncond + GUIDANCE * (cond - uncond)
            latents = self.scheduler.step(noise_pred, t, latents, return_dict=False)[0]
        return latents.numpy()


def ours(engine: sf.Engine, steps: int, noise: Images, label: int) -> Images:
    """The engine's images from the same noise."""
    return engine.sample(
        len(noise),
        cond=label,
        sampler="ddim",
        steps=steps,
        guidance_scale=GUIDANCE,
        noise=noise,
    )


def outside_network(engine: sf.Engine, call: Contender) -> float:
    """Microseconds of a step that the engine itself takes, by its own counters."""
    before = engine.stats()
    call.call()
    after = engine.stats()
    seconds = after.loop_seconds - before.loop_seconds + after.step_seconds - before.step_seconds
    return 1e6 * seconds / (after.forwards - before.forwards)


def main() -> None:
    """Runs throughput and latency."""
    options = arguments(__doc__, bundle=True)
    rounds, cases, steps = (1, QUICK_CASES, QUICK_STEPS) if options.quick else (9, CASES, STEPS)
    threads = 0
    if options.quick:  # more threads than free cores wait for each other at every operator
        threads = 1
        torch.set_num_threads(threads)
    bundle = sf.Bundle.load(options.bundle)
    pipelines = {
        "torch": TorchPipeline(bundle.path, torch.contiguous_format, steps),
        "torch, channels_last": TorchPipeline(bundle.path, torch.channels_last, steps),
    }
    configuration = {
        "model": bundle.name,
        "sampler": f"ddim, {steps} steps",
        "guidance_scale": GUIDANCE,
        "torch_threads": torch.get_num_threads(),
        "onnxruntime_threads": threads or "one a core",
        "rounds": rounds,
    }
    report = Report("end_to_end", options.quick, configuration, UNFAIR)
    settle = partial(time.sleep, SETTLE_SECONDS)  # let the other side's threads stop waiting actively
    with sf.Engine.load(bundle.path, threads=threads) as engine:
        for n in cases:
            noise = np.random.default_rng(0).standard_normal((n, *bundle.info.shape), dtype=np.float32)
            contenders = {"stepfuse": Contender(partial(ours, engine, steps, noise, 7), settle)}
            for name, pipeline in pipelines.items():
                contenders[name] = Contender(partial(pipeline, noise, 7), settle)
                np.testing.assert_allclose(
                    pipeline(noise, 7), ours(engine, steps, noise, 7), rtol=0, atol=MAX_DIFFERENCE
                )
            samples = in_turn(contenders, rounds=rounds)
            extra = {name: {"images_per_second": n / float(np.median(seconds))} for name, seconds in samples.items()}
            extra["stepfuse"]["us_a_step_outside_the_network"] = outside_network(engine, contenders["stepfuse"])
            peer = min(pipelines, key=lambda name: np.median(samples[name]))
            report.add(f"{n} guided", samples, peer, extra=extra)
    report.publish()


if __name__ == "__main__":
    main()
