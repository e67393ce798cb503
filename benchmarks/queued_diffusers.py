"""The peer of ``mixed_load.py`` and ``http_load.py``: diffusers' schedulers around the same network."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from load import Asked

import stepfuse as sf
from stepfuse.serving.config import CostCurve

MAX_DIFFERENCE = 2e-3

Images = npt.NDArray[np.float32]


class Diffusers:
    """The same network file in ONNX Runtime under diffusers' schedulers, sampled as its pipelines do."""

    def __init__(self, bundle: str, threads: int) -> None:
        found = sf.Bundle.load(bundle)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = ort.InferenceSession(str(found.denoiser), options, providers=["CPUExecutionProvider"])
        self.null = found.info.cond["class_labels"].null
        self.shape = found.info.shape
        self.schedulers = {
            "ddim": DDIMScheduler(clip_sample=False),
            "dpmpp_2m": DPMSolverMultistepScheduler(algorithm_type="dpmsolver++", solver_order=2),
        }

    def __call__(self, asked: Asked, noise: Images | None = None) -> Images:
        """The image of one request, (C, H, W)."""
        return self.batch([asked], None if noise is None else noise[None])[0]

    @torch.inference_mode()
    def batch(self, asked: Sequence[Asked], noise: Images | None = None) -> Images:
        """The images of requests of the same sampler, steps and guidance scale, (n, C, H, W)."""
        first, n = asked[0], len(asked)
        scheduler, guided = self.schedulers[first.sampler], first.rows == 2
        scheduler.set_timesteps(first.steps)
        if noise is None:
            generators = [torch.Generator().manual_seed(one.seed) for one in asked]
            latents = torch.cat([torch.randn((1, *self.shape), generator=generator) for generator in generators])
        else:
            latents = torch.from_numpy(noise)
        latents = latents * scheduler.init_noise_sigma
        labels = np.array([self.null] * (n * guided) + [one.label for one in asked])
        for t in scheduler.timesteps:
            model_input = torch.cat([latents] * 2) if guided else latents
            model_input = scheduler.scale_model_input(model_input, t)
            timestep = t.float().expand(len(labels)).numpy()
            feed = {"sample": model_input.numpy(), "timestep": timestep, "class_labels": labels}
            noise_pred = torch.from_numpy(self.session.run(["prediction"], feed)[0])
            if guided:
                uncond, cond = noise_pred.chunk(2)
                noise_pred = uncond + first.guidance_scale * (cond - uncond)
            latents = scheduler.step(noise_pred, t, latents, return_dict=False)[0]
        images: Images = latents.numpy()
        return images

    def check(self, engine: sf.Engine) -> None:
        """Both must give the same images from the same noise."""
        for sampler, rows in (("ddim", 2), ("dpmpp_2m", 2), ("dpmpp_2m", 1)):
            asked = Asked(sampler, 20, rows, label=7, seed=0)
            noise = np.random.default_rng(0).standard_normal(self.shape, dtype=np.float32)
            request = sf.Request(**{**vars(asked.request()), "noise": noise.copy()})
            np.testing.assert_allclose(self(asked, noise), engine.submit(request).result(), rtol=0, atol=MAX_DIFFERENCE)

    def cost(self, repeats: int, steps: int) -> CostCurve:
        """Seconds of a step: the line through lone requests of one row and of two, the median of each."""
        seconds: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(repeats):
            for rows, found in seconds.items():
                began = time.perf_counter()
                for sampler in self.schedulers:
                    self(Asked(sampler, steps, rows, label=0, seed=0))
                found.append((time.perf_counter() - began) / (steps * len(self.schedulers)))
        one_row, two_rows = (float(np.median(found)) for found in seconds.values())
        row = max(two_rows - one_row, 1e-9)
        return CostCurve(max(one_row - row, 0.0), row)
