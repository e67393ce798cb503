"""One picture of a prompt to draw, as ``TextToImage.submit`` takes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

from stepfuse.arguments import with_hints
from stepfuse.samplers.table import StepTable


@with_hints
@dataclass(frozen=True)
class PromptRequest:
    """One picture to draw, as ``TextToImage.submit`` takes it: the arguments of its call for one picture.

    Attributes:
        prompt: What the picture shows.
        negative_prompt: What guidance leads away from.
        width: In pixels; None is the width of ``image`` or ``latents``, or the model's own.
        height: In pixels, likewise.
        sampler: A name of ``stepfuse.samplers.SAMPLERS``; None is the model's default, as are the next three.
        steps: Number of steps.
        guidance_scale: 1 is no guidance; 0 samples the negative prompt. Any, where it is an input of the network.
        eta: Share of added noise of samplers that have one, 0 to 1; None is the model's default, or the sampler's.
        seed: 0 to 2^64 - 1; None is a random one.
        latents: Starting noise, shape (C, h, w); None generates it from the seed. With ``denoising_start`` what the run
            goes on from.
        prompt_embeds: Instead of ``prompt``, what ``encode_prompt`` returns.
        negative_prompt_embeds: Instead of ``negative_prompt``.
        image: What the picture begins as, noised, or with ``mask`` the known region.
        mask: White, or 1, where ``image`` is repainted.
        strength: Share of the steps that are taken from ``image`` on, above 0 to 1.
        sample_posterior: Whether ``image`` is encoded as a sample of the VAE's posterior.
        options: The sampler's own options by name.
        priority: Requests of a higher one go first, whatever the policy.
        deadline: Time on ``time.monotonic()`` by which the picture is wanted. The request is refused if that cannot be;
            once taken, it is finished even if late.
        timeout: Seconds from submission, of all stages together, after which it is given up.
        id: What messages, logs and traces call it; None numbers it.
        table: A compiled sampler, instead of sampler, steps, guidance_scale, eta and options.
        control: Pictures that ControlNets follow, by their names.
        control_scale: How much they act; a number for all, or by name.
        control_range: At which share of the steps, (begin, end), for all or by name.
        lora: Scales of LoRAs by name, as in ``Engine.sample``.
        denoising_start: Where on the way from noise the run goes on from ``latents``, above 0 and below 1.
        denoising_end: Where it ends with noise left, likewise.

    Examples:
        >>> request = sf.PromptRequest(prompt="a red cat", steps=20, seed=3)
        >>> request.prompt, request.negative_prompt
        ('a red cat', None)
    """

    prompt: str | None = None
    negative_prompt: str | None = None
    width: int | None = None
    height: int | None = None
    sampler: str | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    eta: float | None = None
    seed: int | None = None
    latents: npt.ArrayLike | None = None
    prompt_embeds: Mapping[str, npt.ArrayLike] | None = None
    negative_prompt_embeds: Mapping[str, npt.ArrayLike] | None = None
    image: Any = None
    mask: Any = None
    strength: float | None = None
    sample_posterior: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    priority: int = 0
    deadline: float | None = None
    timeout: float | None = None
    id: str | None = None
    table: StepTable | None = None
    control: Mapping[str, Any] | None = None
    control_scale: float | Mapping[str, float] | None = None
    control_range: tuple[float, float] | Mapping[str, tuple[float, float]] | None = None
    lora: Mapping[str, float] | None = None
    denoising_start: float | None = None
    denoising_end: float | None = None
