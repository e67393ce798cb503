"""What clients of the services ask for, and what they must get."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from load import Asked, Load, poisson
from PIL import Image

import stepfuse as sf

GENERATIONS = "/v1/images/generations"
#: Numbers of steps that people choose, so that static batches find members: of uniform ones they would find none.
STEPS = (10, 20, 30, 50)
SAMPLER = "dpmpp_2m"
PREVIEWS = 3
STREAMED = 4  # of as many requests one is a stream
ROUNDING = 1  # of 255 levels: rows of another forward may round another way

Levels = npt.NDArray[np.uint8]


def arrivals(count: int, rate: float, seed: int, steps: Sequence[int] = STEPS) -> Load:
    """An open loop of ``rate`` requests a second, a mixed load of few numbers of steps and one sampler."""
    drawn = poisson(count, rate, seed, (steps[0], steps[-1]))
    near = [min(steps, key=lambda one, asked=asked: abs(one - asked.steps)) for asked in drawn.asked]  # type: ignore[misc]
    asked = [replace(one, steps=n, sampler=SAMPLER) for one, n in zip(drawn.asked, near, strict=True)]
    return replace(drawn, asked=asked)


def body(asked: Asked, *, stream: bool = False) -> dict[str, Any]:
    """A request's body; services without previews ignore ``stream``."""
    fields = {"prompt": str(asked.label), "num_inference_steps": asked.steps, "guidance_scale": asked.guidance_scale}
    fields |= {"sampler": asked.sampler, "seed": asked.seed, "response_format": "b64_json"}
    return fields | ({"stream": True, "partial_images": PREVIEWS} if stream else {})


def expected(engine: sf.Engine, asked: Asked) -> Levels:
    """The 8-bit picture that ``Engine.sample`` draws, (H, W) or (H, W, 3)."""
    low, high = engine.info.data_range
    sample = engine.sample(
        1,
        cond=asked.label,
        sampler=asked.sampler,
        steps=asked.steps,
        guidance_scale=asked.guidance_scale,
        seed=asked.seed,
    )[0]
    levels = np.round(np.clip((sample.astype(np.float64) - low) / (high - low), 0, 1) * 255).astype(np.uint8)
    return levels[0] if len(levels) == 1 else levels.transpose(1, 2, 0)


def picture(answer: Mapping[str, Any]) -> Levels:
    """The picture of an answer, or of an event."""
    encoded = answer["b64_json"] if "b64_json" in answer else answer["data"][0]["b64_json"]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))))


def same(found: Levels, wanted: Levels, most: int = ROUNDING) -> bool:
    """Whether no pixel differs by more than ``most`` of 255."""
    return found.shape == wanted.shape and bool(np.all(np.abs(found.astype(int) - wanted) <= most))
