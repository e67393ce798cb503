"""Answers that hold pictures: all at once, or as a stream of events."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import Request, Response

from stepfuse.pipeline.pictures import Pictures as DrawnPictures
from stepfuse.requests.prompt_request import PromptRequest
from stepfuse.server.drawing import ClientGoneError, draw, unless_gone, watch
from stepfuse.server.encoding import MEDIA_TYPES, as_base64, drawn, picture_file, size_of
from stepfuse.server.errors import api_error
from stepfuse.server.events import EventStream, events_of
from stepfuse.server.limits import Limits
from stepfuse.server.models import ServedModel
from stepfuse.server.requests import model_of, requests_of
from stepfuse.server.schema import Asked, Picture, Pictures
from stepfuse.server.store import Store


@dataclass(frozen=True)
class Served:
    """What routes answer with.

    Attributes:
        models: The first one draws what names none.
        limits: What a client may ask for.
        store: Keeps pictures for their urls.
    """

    models: Sequence[ServedModel]
    limits: Limits
    store: Store


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
    try:
        requests = requests_of(asked, model, served.limits, request.state.request_id, **(given or {}))
        if asked.stream:
            watched = await unless_gone(request.receive, watch(model, requests))
            return EventStream(watched, events_of(model, requests, watched, asked, kind=kind))
        pictures = await unless_gone(request.receive, draw(model, requests))
        return await asyncio.to_thread(_encoded, request, model, requests, pictures, asked, served.store)
    except ClientGoneError:
        raise
    except Exception as error:
        raise api_error(error, model.retry_after()) from error


def _encoded(
    request: Request,
    model: ServedModel,
    requests: Sequence[PromptRequest],
    pictures: Sequence[DrawnPictures],
    asked: Asked,
    store: Store,
) -> Response:
    data = []
    for drawn_of, one in zip(requests, pictures, strict=True):
        file, how = picture_file(one, asked), drawn(one, model, drawn_of.id or "")
        if asked.response_format == "url":
            id = store.put(file, MEDIA_TYPES[asked.output_format])
            data.append(Picture(b64_json=None, url=f"{request.base_url}v1/images/{id}/content", drawn=how))
        else:
            data.append(Picture(b64_json=as_base64(file), url=None, drawn=how))
    found = Pictures(
        created=int(time.time()),
        data=data,
        output_format=asked.output_format,
        size=size_of(pictures[0][0]),
        safety_identifier=asked.safety_identifier or asked.user,
    )
    return Response(found.model_dump_json(exclude_none=True), media_type="application/json")
