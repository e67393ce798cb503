"""Answers that hold pictures: all at once, or as a stream of events."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request, Response

from stepfuse.pipeline.pictures import Pictures as DrawnPictures
from stepfuse.requests.prompt_request import PromptRequest
from stepfuse.server.drawing import ClientGoneError, draw, unless_gone, watch
from stepfuse.server.encoding import MEDIA_TYPES, as_base64, drawn, picture_file
from stepfuse.server.errors import ApiError, api_error
from stepfuse.server.events import EventStream, events_of
from stepfuse.server.limits import Limits
from stepfuse.server.models import ServedModel
from stepfuse.server.requests import controls_of, model_of, requests_of
from stepfuse.server.schema import Asked, Picture, Pictures
from stepfuse.server.store import Store


@dataclass(frozen=True)
class Served:
    """What routes answer with.

    Attributes:
        models: The first one draws what names none.
        limits: What a client may ask for.
        store: Keeps pictures for their urls.
        replicated: Whether other replicas of the app answer the same clients.
        workers: Threads for what would hold up the event loop; those of a pool that nothing refers to end.
    """

    models: Sequence[ServedModel]
    limits: Limits
    store: Store
    replicated: bool = False
    workers: Executor = field(default_factory=ThreadPoolExecutor)


async def answer(
    request: Request,
    asked: Asked,
    served: Served,
    given: Mapping[str, Any] | None = None,
    *,
    kind: str = "image_generation",
) -> Response:
    """Draws what a body asks for.

    Args:
        request: Of the client.
        asked: Its body.
        served: What draws it.
        given: ``image``, ``mask`` and ``strength``.
        kind: What the types of events begin with.

    Raises:
        ApiError: If it cannot be drawn.
        ClientGoneError: If the client has gone.
    """
    model = model_of(served.models, asked.model)
    request.state.user, request.state.model = asked.safety_identifier or asked.user, model.name
    if asked.response_format == "url" and served.replicated:  # one has the picture, any may be asked for it
        rule = "response_format must be b64_json where several replicas answer, got 'url'"
        raise ApiError(400, rule, param="response_format")
    try:
        given = {**(given or {}), **await followed(asked, model, served.limits)}
        requests = requests_of(asked, model, served.limits, request.state.request_id, **given)
        if asked.stream:
            watched = await unless_gone(request.receive, watch(model, requests))
            return EventStream(watched, events_of(model, requests, watched, asked, kind=kind))

        warnings: list[str] = []

        def made(drawn_of: PromptRequest, pictures: DrawnPictures) -> Picture:
            if drawn_of is requests[0]:  # all have its prompt
                warnings.extend(model.warnings(drawn_of))
            return _picture(request, model, drawn_of, pictures, asked, served.store)

        data = await unless_gone(request.receive, draw(model, requests, made, served.workers))
        found = Pictures(
            created=int(time.time()),
            data=data,
            output_format=asked.output_format,
            size=data[0].drawn.size,
            safety_identifier=asked.safety_identifier or asked.user,
            warnings=warnings or None,
        )
        return Response(found.model_dump_json(exclude_none=True), media_type="application/json")
    except ClientGoneError:
        raise
    except Exception as error:
        raise api_error(error, model.retry_after()) from error


async def followed(asked: Asked, model: ServedModel, limits: Limits) -> Mapping[str, Any]:
    """What ControlNets follow, unpacked on a thread: ``controls_of``."""
    return await asyncio.to_thread(controls_of, asked, model, limits) if asked.control else {}


def _picture(
    request: Request, model: ServedModel, drawn_of: PromptRequest, pictures: DrawnPictures, asked: Asked, store: Store
) -> Picture:
    """A picture as its file, or under a url."""
    file, how = picture_file(pictures, asked), drawn(pictures, model, drawn_of.id or "")
    if asked.response_format == "b64_json":
        return Picture(b64_json=as_base64(file), url=None, drawn=how)
    id = store.put(file, MEDIA_TYPES[asked.output_format])
    return Picture(b64_json=None, url=f"{request.base_url}v1/images/{id}/content", drawn=how)
