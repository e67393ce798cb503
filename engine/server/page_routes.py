"""The page, and the events that it shows."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator, Sequence
from importlib.resources import files

from fastapi import APIRouter, Response

from stepfuse.server.events import EventStream
from stepfuse.server.lifecycle import Lifecycle
from stepfuse.server.live import Live
from stepfuse.server.models import ServedModel

#: The page is one file: it loads nothing, and what it shows cannot make it.
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline';"
    " img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-cache",
    "X-Content-Type-Options": "nosniff",
}


_A_LOOK = 5.0  # seconds of one replica's live events: it ends when they have, with the rest of its answers


def page_routes(models: Sequence[ServedModel], lifecycle: Lifecycle, *, replicated: bool = False) -> APIRouter:
    """``/`` and ``/v1/live``."""
    routes = APIRouter()
    page = files("stepfuse.server").joinpath("page.html").read_text(encoding="utf-8")
    live = Live(models, lifecycle, _A_LOOK if replicated else math.inf)

    async def events() -> AsyncIterator[bytes]:
        async for event in live.events():
            yield f"data: {json.dumps(event)}\n\n".encode()

    @routes.get("/", include_in_schema=False)
    async def show() -> Response:
        return Response(page, media_type="text/html; charset=utf-8", headers=_HEADERS)

    @routes.get(
        "/v1/live",
        tags=["service"],
        summary="What the engines are doing: events of the forwards' requests, queues and rates",
        response_class=Response,
        responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
    )
    async def watch() -> Response:
        return EventStream((), events())

    return routes
