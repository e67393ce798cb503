"""The routes of Stable Diffusion's web interfaces that most of their clients use."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Body, Request, Response
from PIL import ImageOps

from stepfuse.pipeline.image_files import WEBUI_ENTRY
from stepfuse.pipeline.pictures import Pictures
from stepfuse.pipeline.webui_text import WEBUI_NAMES
from stepfuse.requests.prompt_request import PromptRequest
from stepfuse.samplers.names import steps_asked
from stepfuse.server.answers import Served, followed
from stepfuse.server.drawing import ClientGoneError, unless_gone
from stepfuse.server.encoding import as_base64, picture_file
from stepfuse.server.errors import api_error, of_one_replica
from stepfuse.server.given_images import from_base64, given_image, repainted
from stepfuse.server.limits import Limits
from stepfuse.server.models import ServedModel
from stepfuse.server.requests import model_of, requests_of
from stepfuse.server.schema import Asked, Failure
from stepfuse.server.webui_progress import Jobs
from stepfuse.server.webui_schema import CHECKPOINT, SCHEDULERS, Img2Img, Txt2Img, model_in

IMG2IMG, TXT2IMG = "/sdapi/v1/img2img", "/sdapi/v1/txt2img"

_REFUSED: dict[int | str, dict[str, Any]] = {400: {"model": Failure}, 404: {"model": Failure}, 429: {"model": Failure}}


def webui_routes(served: Served) -> APIRouter:
    """The routes below ``/sdapi/v1``."""
    routes = APIRouter(prefix="/sdapi/v1", tags=["web interfaces"])
    jobs = Jobs()
    selected = served.models[0]  # by any client for all of them, as those interfaces have it

    def named(name: str | None) -> ServedModel:
        return selected if name is None else model_of(served.models, name)

    @routes.post("/txt2img", summary="Draw pictures of a prompt", responses=_REFUSED)
    async def txt2img(body: Txt2Img, request: Request) -> Response:
        return await _drawn(request, body, named(body.model), served, jobs, {})

    @routes.post("/img2img", summary="Draw pictures that begin as another one", responses=_REFUSED)
    async def img2img(body: Img2Img, request: Request) -> Response:
        given = await asyncio.to_thread(_given, body, served.limits)
        return await _drawn(request, body, named(body.model), served, jobs, given)

    @routes.get("/samplers", summary="Names of samplers")
    async def samplers() -> list[dict[str, Any]]:
        names = list(dict.fromkeys(name for model in served.models for name in model.samplers))
        return [{"name": WEBUI_NAMES.get(name, name), "aliases": [name], "options": {}} for name in names]

    @routes.get("/schedulers", summary="Names of noise levels")
    async def schedulers() -> list[dict[str, Any]]:
        return [{"name": name.lower(), "label": name, "aliases": None} for name in SCHEDULERS]

    @routes.get("/sd-models", summary="What is served")
    async def models() -> list[dict[str, Any]]:
        return [
            {
                "title": model.name,
                "model_name": model.name,
                "hash": model.digest[:10],
                "sha256": model.digest,
                "filename": model.name,
                "config": None,
            }
            for model in served.models
        ]

    @routes.get("/options", summary="The model that draws what names none")
    async def options() -> dict[str, Any]:
        return {CHECKPOINT: selected.name}

    @routes.post("/options", summary="Selects the model that draws what names none", responses=_REFUSED)
    async def select(settings: Annotated[dict[str, Any], Body(examples=[{CHECKPOINT: "fashion"}])]) -> None:
        nonlocal selected
        model = named(model_in(settings, "options"))
        if served.replicated and model is not selected:
            raise of_one_replica("the selected model is", f"send override_settings.{CHECKPOINT} with each request")
        selected = model

    @routes.get("/progress", summary="How far the oldest request of these routes has come, with a preview")
    async def progress(skip_current_image: bool = False) -> dict[str, Any]:
        if served.replicated:
            raise of_one_replica("progress is", "take /v1/images/generations, whose stream has previews")
        return await jobs.progress(with_image=not skip_current_image)

    return routes


async def _drawn(
    request: Request, body: Txt2Img, model: ServedModel, served: Served, jobs: Jobs, given: Mapping[str, Any]
) -> Response:
    request.state.model = model.name
    try:
        asked = body.asked(model)
        given = {**given, **await followed(asked, model, served.limits)}
        requests = requests_of(asked, model, served.limits, request.state.request_id, **given)
        pictures = await unless_gone(request.receive, jobs.draw(model, requests))
        return await asyncio.to_thread(_encoded, model, body, asked, requests[0], pictures)
    except ClientGoneError:
        raise
    except Exception as error:
        raise api_error(error, model.retry_after()) from error


def _given(body: Img2Img, limits: Limits) -> Mapping[str, Any]:
    image = given_image("init_images", from_base64("init_images", body.init_images[0]), limits)
    mask = None
    if body.mask is not None:
        mask = repainted(given_image("mask", from_base64("mask", body.mask), limits), where_opaque=True)
        mask = ImageOps.invert(mask) if body.inpainting_mask_invert else mask
    return {"image": image, "mask": mask, "strength": body.denoising_strength}


def _encoded(
    model: ServedModel, body: Txt2Img, asked: Asked, request: PromptRequest, pictures: Sequence[Pictures]
) -> Response:
    made = [one.provenance[0] for one in pictures]
    first, picture = made[0], pictures[0][0]
    info = {
        "prompt": body.prompt,
        "all_prompts": [body.prompt] * len(made),
        "negative_prompt": body.negative_prompt or "",
        "seed": first.seed,
        "all_seeds": [one.seed for one in made],
        "width": picture.width,
        "height": picture.height,
        "sampler_name": WEBUI_NAMES.get(first.sampler, first.sampler),
        "cfg_scale": first.options.get("guidance_scale", 1.0),
        "steps": steps_asked(first.options, first.steps),
        "batch_size": len(made),
        "sd_model_name": model.name,
        "sd_model_hash": model.digest[:10],
        "warnings": [*model.warnings(request), *body.unread],
        "infotexts": [one.facts[0].get(WEBUI_ENTRY, one.facts[0].get("Description", "")) for one in pictures],
    }
    parameters = body.model_dump(exclude={"init_images", "mask", "alwayson_scripts"})
    images = [as_base64(picture_file(one, asked)) for one in pictures]
    found = {"images": images, "parameters": parameters, "info": json.dumps(info)}
    return Response(json.dumps(found), media_type="application/json")
