"""One image to draw, as ``Engine.submit`` takes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

from stepfuse.arguments import with_hints
from stepfuse.display import one_line
from stepfuse.samplers.table import StepTable


@with_hints
@dataclass(frozen=True)
class Request:
    """One image to draw, as ``Engine.submit`` takes it: the arguments of ``Engine.sample`` for one sample.

    Attributes:
        cond: Conditioning; None is the null value.
        negative_cond: Conditioning of the unconditional pass; None is the null value.
        sampler: A name of ``stepfuse.samplers.SAMPLERS``; None is the model's default.
        steps: Number of steps; None is the model's default.
        guidance_scale: None is the model's default.
        eta: Share of added noise of samplers that have one, 0 to 1; None is the model's default, or the sampler's.
        seed: 0 to 2^64 - 1; None draws one.
        table: A compiled sampler, instead of sampler, steps, guidance_scale, eta and options.
        noise: Starting noise of one sample's shape; None draws it from the seed.
        image: Of the model's shape, to begin with or to keep in part, as in ``Engine.sample``.
        mask: Which part of ``image`` is drawn anew.
        strength: How much of the run is left to an image.
        options: The sampler's own options by name.
        priority: Requests of a higher one step first, whatever the engine's policy.
        deadline: Time on ``time.monotonic()`` by which the image is wanted. The request is refused if that cannot be;
            once taken, it is finished even if late.
        timeout: Seconds from submission after which it is given up.
        id: What messages, logs and traces call it; None numbers it.
        lora: Scales of LoRAs by name, as in ``Engine.sample``.

    Examples:
        >>> request = sf.Request(cond="sneaker", steps=20, seed=3, priority=1, timeout=30.0, id="order-17")
        >>> request.steps, request.sampler  # what is None is the model's default
        (20, None)
    """

    cond: Any = None
    negative_cond: Any = None
    sampler: str | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    eta: float | None = None
    seed: int | None = None
    table: StepTable | None = None
    noise: npt.ArrayLike | None = None
    image: npt.ArrayLike | None = None
    mask: npt.ArrayLike | None = None
    strength: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    priority: int = 0
    deadline: float | None = None
    timeout: float | None = None
    id: str | None = None
    lora: Mapping[str, float] | None = None

    __repr__ = one_line
