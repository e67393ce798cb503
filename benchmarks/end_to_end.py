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
CASES = (16, 1)
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

    def __init__(self, bundle: Path, memory_format: torch.memory_format) -> None:
        initializers = onnx.load(bundle / "denoiser.onnx").graph.initializer
        arrays = {tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy()) for tensor in initializers}
        self.network = Denoiser().eval()
        names = [name for name, _ in self.network.named_parameters()]
        self.network.load_state_dict({name: arrays[name] for name in names}, strict=False)
        self.network.to(memory_format=memory_format)
        self.scheduler = DDIMScheduler(clip_sample=False)

    @torch.inference_mode()
    def __call__(self, noise: Images, label: int) -> Images:
        """Images of one class, (n, 1, 28, 28), from this starting noise."""
        self.scheduler.set_timesteps(STEPS)
        latents, n = torch.from_numpy(noise), len(noise)
        labels = torch.tensor([NULL_CLASS] * n + [label] * n)
        for t in self.scheduler.timesteps:
            model_input = self.scheduler.scale_model_input(torch.cat([latents] * 2), t)
            uncond, cond = self.network(model_input, t.float().expand(2 * n), labels).chunk(2)
            noise_pred = uncond + GUIDANCE * (cond - uncond)
            latents = self.scheduler.step(noise_pred, t, latents, return_dict=False)[0]
        return latents.numpy()


def ours(engine: sf.Engine, noise: Images, label: int) -> Images:
    """The engine's images from the same noise."""
    return engine.sample(
        len(noise),
        cond=label,
        sampler="ddim",
        steps=STEPS,
        guidance_scale=GUIDANCE,
        noise=noise,
    )


def outside_network(engine: sf.Engine, call: Contender) -> float:
    """Microseconds of a step that the engine itself takes, by its own counters."""
    before = engine.stats()
    call.call()
    after = engine.stats()
    spent = {name: after[name] - before[name] for name in before}
    return 1e6 * (spent["loop_seconds"] + spent["step_seconds"]) / spent["forwards"]


def main() -> None:
    """Runs throughput and latency."""
    options = arguments(__doc__, bundle=True)
    rounds = 3 if options.quick else 9
    bundle = sf.Bundle.load(options.bundle)
    pipelines = {
        "torch": TorchPipeline(bundle.path, torch.contiguous_format),
        "torch, channels_last": TorchPipeline(bundle.path, torch.channels_last),
    }
    configuration = {
        "model": bundle.name,
        "sampler": f"ddim, {STEPS} steps",
        "guidance_scale": GUIDANCE,
        "torch_threads": torch.get_num_threads(),
        "onnxruntime_threads": "one a core",
        "rounds": rounds,
    }
    report = Report("end_to_end", options.quick, configuration, UNFAIR)
    settle = partial(time.sleep, SETTLE_SECONDS)  # let the other side's threads stop waiting actively
    with sf.Engine.load(bundle.path) as engine:
        for n in CASES:
            noise = np.random.default_rng(0).standard_normal((n, *bundle.info.shape), dtype=np.float32)
            contenders = {"stepfuse": Contender(partial(ours, engine, noise, 7), settle)}
            for name, pipeline in pipelines.items():
                contenders[name] = Contender(partial(pipeline, noise, 7), settle)
                np.testing.assert_allclose(pipeline(noise, 7), ours(engine, noise, 7), rtol=0, atol=MAX_DIFFERENCE)
            samples = in_turn(contenders, rounds=rounds)
            extra = {name: {"images_per_second": n / float(np.median(seconds))} for name, seconds in samples.items()}
            extra["stepfuse"]["us_a_step_outside_the_network"] = outside_network(engine, contenders["stepfuse"])
            peer = min(pipelines, key=lambda name: np.median(samples[name]))
            report.add(f"{n} guided", samples, peer, extra=extra)
    report.publish()


if __name__ == "__main__":
    main()
