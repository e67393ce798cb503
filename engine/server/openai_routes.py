"""OpenAI's routes: models, and images."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request, Response

from stepfuse.pipeline.pictures import Pictures as Drawn
from stepfuse.requests.prompt_request import PromptRequest
from stepfuse.server.drawing import ClientGoneError, draw, unless_gone, watch
from stepfuse.server.encoding import as_base64, drawn, picture_file, size_of
from stepfuse.server.errors import api_error
from stepfuse.server.events import EventStream, events_of
from stepfuse.server.limits import Limits
from stepfuse.server.models import ServedModel
from stepfuse.server.requests import model_of, requests_of
from stepfuse.server.schema import Asked, Failure, Generation, Model, Models, Picture, Pictures

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


def openai_routes(models: Sequence[ServedModel], limits: Limits) -> APIRouter:
    """The routes below ``/v1``.

    Args:
        models: What is served.
        limits: What a client may ask for.
    """
    routes = APIRouter(prefix="/v1", tags=["images"])
    started = int(time.time())

    @routes.get("/models", summary="What is served", responses={401: _FAILURES[401]})
    async def list_models() -> Models:
        return Models(data=[_described(model, started) for model in models])

    @routes.get("/models/{name:path}", summary="One model", responses={401: _FAILURES[401], 404: _FAILURES[404]})
    async def get_model(name: str) -> Model:
        return _described(model_of(models, name), started)

    @routes.post(
        "/images/generations",
        summary="Draw pictures of a prompt or a class",
        response_model=Pictures,
        responses={
            200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}, "description": "Pictures."},
            **_FAILURES,
        },
        openapi_extra={"requestBody": {"content": {"application/json": {"example": _EXAMPLE}}}},
    )
    async def generate(asked: Generation, request: Request) -> Response:
        return await answer(request, asked, models, limits)

    return routes


async def answer(request: Request, asked: Asked, models: Sequence[ServedModel], limits: Limits) -> Response:
    """Draws what a body asks for, as one answer or as a stream of events.

    Raises:
        ApiError: If it cannot be drawn.
        ClientGoneError: If the client has gone.
    """
    model = model_of(models, asked.model)
    request.state.user, request.state.model = asked.safety_identifier or asked.user, model.name
    try:
        requests = requests_of(asked, model, limits, request.state.request_id)
        if asked.stream:
            watched = await unless_gone(request.receive, watch(model, requests))
            return EventStream(watched, events_of(model, requests, watched, asked), {})
        return await unless_gone(request.receive, _answered(model, requests, asked))
    except ClientGoneError:
        raise
    except Exception as error:
        raise api_error(error, model.retry_after()) from error


async def _answered(model: ServedModel, requests: Sequence[PromptRequest], asked: Asked) -> Response:
    pictures = await draw(model, requests)
    return await asyncio.to_thread(_encoded, model, requests, pictures, asked)


def _encoded(
    model: ServedModel, requests: Sequence[PromptRequest], pictures: Sequence[Drawn], asked: Asked
) -> Response:
    data = [
        Picture(b64_json=as_base64(picture_file(one, asked)), url=None, drawn=drawn(one, model, request.id or ""))
        for request, one in zip(requests, pictures, strict=True)
    ]
    found = Pictures(
        created=int(time.time()),
        data=data,
        output_format=asked.output_format,
        size=size_of(pictures[0][0]),
        safety_identifier=asked.safety_identifier or asked.user,
    )
    return Response(found.model_dump_json(exclude_none=True), media_type="application/json")


def _described(model: ServedModel, started: int) -> Model:
    return Model(
        id=model.name,
        created=started,
        digest=model.digest,
        classes=None if model.classes is None else list(model.classes),
        size=f"{model.size[0]}x{model.size[1]}",
        samplers=model.samplers,
        defaults=dict(model.info.defaults),
    )
