"""From a request's body to a request for each picture."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Any

from stepfuse.display import brief, did_you_mean, listed
from stepfuse.requests.prompt_request import PromptRequest
from stepfuse.requests.resolution import seeds_of
from stepfuse.server.errors import ApiError
from stepfuse.server.fields import require_options_alone
from stepfuse.server.given_images import from_base64, given_image
from stepfuse.server.limits import Limits
from stepfuse.server.models import ServedModel
from stepfuse.server.schema import Asked

_EXACT = 1 << 53  # seeds below it are the same number in every client's JSON


def model_of(models: Sequence[ServedModel], name: str | None) -> ServedModel:
    """The model of a name, the first one for None.

    Raises:
        ApiError: 404 if there is none.
    """
    if name is None:
        return models[0]
    found = next((model for model in models if model.name == name), None)
    if found is None:
        names = [model.name for model in models]
        known = f"{did_you_mean(name, names)}: there are {listed(names)}"
        raise ApiError(404, f"there is no model {brief(name)}{known}", param="model", code="model_not_found")
    return found


def requests_of(asked: Asked, model: ServedModel, limits: Limits, id: str, **given: Any) -> list[PromptRequest]:
    """A request for each picture, with its seed, within the limits.

    Args:
        asked: The body.
        model: What draws it.
        limits: What a client may ask for.
        id: The request's.
        **given: ``image``, ``mask`` and ``strength`` of all pictures, and what ``controls_of`` has found.

    Raises:
        ApiError: If a limit is exceeded.
    """
    width, height = asked.pixels
    pixels = (width or model.size[0]) * (height or model.size[1])
    _within("n", asked.n, limits.images)
    _within("num_inference_steps", asked.num_inference_steps or 0, limits.steps)
    _within("partial_images", asked.partial_images or 0, limits.steps)
    _within("size", pixels, limits.pixels, "pixels")
    try:
        require_options_alone(asked.sampler_options)
    except ValueError as error:
        raise ApiError(400, str(error), param="sampler_options") from error
    for name, value in asked.sampler_options.items():
        if isinstance(value, list):
            _within(f"sampler_options.{name}", len(value), limits.steps, "values")
    if asked.lora and not model.loras:
        rule = f"lora must be left out for {brief(model.name)}, which is served without LoRAs"
        raise ApiError(
            400, f"{rule}, got {brief(asked.lora)}: 'stepfuse serve --lora NAME=FILE' adds one", param="lora"
        )
    first = secrets.randbelow(_EXACT) if asked.seed is None else asked.seed
    return [
        PromptRequest(
            asked.prompt,
            negative_prompt=asked.negative_prompt,
            width=width,
            height=height,
            sampler=asked.sampler,
            steps=asked.num_inference_steps,
            guidance_scale=asked.guidance_scale,
            eta=asked.eta,
            seed=seed,
            options=asked.sampler_options,
            lora=asked.lora or None,
            **given,
            priority=asked.priority,
            deadline=None if asked.deadline_ms is None else time.monotonic() + asked.deadline_ms / 1000,
            timeout=None if asked.timeout_ms is None else asked.timeout_ms / 1000,
            id=id if asked.n == 1 else f"{id}-{index}",
        )
        for index, seed in enumerate(seeds_of(first, asked.n))
    ]


def controls_of(asked: Asked, model: ServedModel, limits: Limits) -> dict[str, Any]:
    """What ControlNets follow, as arguments of a ``PromptRequest``.

    Args:
        asked: The body.
        model: What draws it.
        limits: How many pixels each picture may have.

    Raises:
        ApiError: If the model has no ControlNet of a name, or a picture is none or too large.
    """
    if not asked.control:
        return {}
    if unknown := sorted(set(asked.control) - set(model.controls)):
        rule = f"control must have names among {listed(model.controls)}"
        if not model.controls:
            rule = (
                f"control must be left out for {brief(model.name)}, which has no ControlNets ('stepfuse export"
                " --controlnet NAME=FOLDER' makes a model with them)"
            )
        raise ApiError(400, f"{rule}, got {brief(listed(unknown))}", param="control")
    pictures = {}
    for name, one in asked.control.items():
        field = f"control.{name}.image"
        pictures[name] = given_image(field, from_base64(field, one.image), limits)
    return {
        "control": pictures,
        "control_scale": {name: one.scale for name, one in asked.control.items()},
        "control_range": {name: one.range for name, one in asked.control.items()},
    }


def _within(name: str, value: int, most: int, unit: str = "") -> None:
    if value > most:
        raise ApiError(400, f"{name} must be at most {most:,}{unit and ' '}{unit}, got {value:,}", param=name)
