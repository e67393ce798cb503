"""OpenAI's routes: models, and images."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request, Response

from stepfuse.server.answers import Served, answer
from stepfuse.server.errors import ApiError
from stepfuse.server.forms import edit_of
from stepfuse.server.given_images import given_image, repainted
from stepfuse.server.limits import Limits
from stepfuse.server.models import ServedModel
from stepfuse.server.requests import model_of
from stepfuse.server.schema import Edit, Failure, Generation, Model, Models, Pictures

EDITS, GENERATIONS = "/v1/images/edits", "/v1/images/generations"

_EXAMPLE = {
    "model": "fashion",
    "prompt": "sneaker",
    "n": 2,
    "num_inference_steps": 20,
    "guidance_scale": 3.0,
    "seed": 7,
}
_FAILURES: dict[int | str, dict[str, Any]] = {
    400: {"model": Failure, "description": "A field is refused; the message says the rule and the value."},
    401: {"model": Failure, "description": "The API key is missing or wrong."},
    404: {"model": Failure, "description": "There is no such model."},
    413: {"model": Failure, "description": "The body is too large."},
    429: {"model": Failure, "description": "The queue is full, or the deadline cannot be met; see Retry-After."},
    500: {"model": Failure, "description": "A network failed, or the service."},
    503: {"model": Failure, "description": "The service is ending."},
    504: {"model": Failure, "description": "The request's timeout has passed."},
}
_ANSWERS = {
    200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}, "description": "Pictures."},
    **_FAILURES,
}
_EDIT = Edit.model_json_schema()


def openai_routes(served: Served) -> APIRouter:
    """The routes below ``/v1``."""
    routes = APIRouter(prefix="/v1", tags=["images"])
    started = int(time.time())

    @routes.get("/models", summary="What is served", responses={401: _FAILURES[401]})
    async def list_models() -> Models:
        return Models(data=[_described(model, started) for model in served.models])

    @routes.get("/models/{name:path}", summary="One model", responses={401: _FAILURES[401], 404: _FAILURES[404]})
    async def get_model(name: str) -> Model:
        return _described(model_of(served.models, name), started)

    @routes.post(
        "/images/generations",
        summary="Draw pictures of a prompt or a class",
        response_model=Pictures,
        responses=_ANSWERS,
        openapi_extra={"requestBody": {"content": {"application/json": {"example": _EXAMPLE}}}},
    )
    async def generate(asked: Generation, request: Request) -> Response:
        return await answer(request, asked, served)

    @routes.post(
        "/images/edits",
        summary="Draw pictures that begin as another one",
        response_model=Pictures,
        responses=_ANSWERS,
        openapi_extra={"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _EDIT}}}},
    )
    async def edit(request: Request) -> Response:
        asked = await edit_of(request)
        given = await asyncio.to_thread(_given, asked, served.limits)
        return await answer(request, asked, served, given, kind="image_edit")

    @routes.get(
        "/images/{id}/content",
        summary="A picture under its url",
        response_class=Response,
        responses={404: {"model": Failure, "description": "There is none, or it has expired."}},
    )
    async def content(id: str) -> Response:
        found = served.store.get(id)
        if found is None:
            raise ApiError(404, "there is no picture of this url: it may have expired", code="not_found")
        file, left = found
        headers = {"Cache-Control": f"private, max-age={int(left)}", "X-Content-Type-Options": "nosniff"}
        return Response(file.data, media_type=file.media_type, headers=headers)

    return routes


def _given(asked: Edit, limits: Limits) -> Mapping[str, Any]:
    """The pictures of an edit, and its strength."""
    mask = None if asked.mask is None else repainted(given_image("mask", asked.mask, limits))
    return {"image": given_image("image", asked.image, limits), "mask": mask, "strength": asked.strength}


def _described(model: ServedModel, started: int) -> Model:
    return Model(
        id=model.name,
        created=started,
        digest=model.digest,
        classes=None if model.classes is None else list(model.classes),
        size=f"{model.size[0]}x{model.size[1]}",
        samplers=model.samplers,
        loras=list(model.loras),
        controls=list(model.controls),
        defaults=dict(model.info.defaults),
    )
