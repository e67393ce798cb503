"""Pictures as they come into being, as server-sent events with OpenAI's fields."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

from PIL import Image
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from stepfuse.requests.prompt_request import PromptRequest
from stepfuse.server.drawing import ClientGoneError, unless_gone
from stepfuse.server.encoding import as_base64, drawn, picture_file, preview_file, size_of
from stepfuse.server.errors import api_error
from stepfuse.server.models import ServedModel, Watched
from stepfuse.server.schema import Asked

_SILENCE = 15.0  # seconds after which a comment keeps proxies from closing the connection
_WAITING = 2  # events that wait for a slow reader; the previews beyond are not made

#: Images have no tokens here; OpenAI's clients require the object.
_USAGE = {
    "input_tokens": 0,
    "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
    "output_tokens": 0,
    "total_tokens": 0,
}

Event = dict[str, Any]


class EventStream(Response):
    """An answer that is sent as it comes into being, and given up when the client goes away.

    Args:
        watched: The pictures, which are withdrawn if they have not ended.
        events: Of them all.
    """

    media_type = "text/event-stream"

    def __init__(self, watched: Sequence[Watched], events: AsyncIterator[bytes]) -> None:
        super().__init__(headers={"Cache-Control": "no-store"})
        del self.headers["content-length"]
        self._watched, self._events = watched, events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the events."""
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await unless_gone(receive, self._send_all(send))
        except ClientGoneError:
            pass
        finally:
            for one in self._watched:
                one.previews.close()

    async def _send_all(self, send: Send) -> None:
        async with aclosing(self._events) as events:  # type: ignore[type-var]
            async for event in events:
                await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def events_of(
    model: ServedModel,
    requests: Sequence[PromptRequest],
    watched: Sequence[Watched],
    asked: Asked,
    *,
    kind: str = "image_generation",
) -> AsyncIterator[bytes]:
    """Events of the pictures of a request, in the order in which they come: previews, and each picture completed.

    Args:
        model: What draws them.
        requests: The pictures.
        watched: The same, queued.
        asked: How they are sent.
        kind: What the events' types begin with.
    """
    queue: asyncio.Queue[Event | BaseException | None] = asyncio.Queue(_WAITING)

    async def follow(index: int) -> None:
        try:
            async for event in _events_of_one(model, requests[index], watched[index], asked):
                await queue.put({"type": f"{kind}.{event.pop('type')}", "image_index": index, **event})
            await queue.put(None)
        except Exception as error:
            await queue.put(error)

    tasks = [asyncio.create_task(follow(index)) for index in range(len(watched))]
    try:
        left = len(tasks)
        while left:
            try:
                event = await asyncio.wait_for(queue.get(), _SILENCE)
            except asyncio.TimeoutError:
                yield b": nothing yet\n\n"
                continue
            if isinstance(event, BaseException):
                yield _event("error", api_error(event, model.retry_after()).body)
                return
            if event is None:
                left -= 1
            else:
                yield _event(event["type"], event)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _events_of_one(
    model: ServedModel, request: PromptRequest, watched: Watched, asked: Asked
) -> AsyncIterator[Event]:
    left: list[int] | None = None
    sent = 0
    async for preview in watched.previews:
        if left is None:
            left = preview_steps(asked.partial_images or 0, preview.total)
        if preview.step == preview.total:
            yield await asyncio.to_thread(_completed, model, request, watched, preview, asked)
        elif left and preview.step >= left[0]:
            left = [step for step in left if step > preview.step]
            event = await asyncio.to_thread(_partial, watched, preview, asked)
            yield {**event, "partial_image_index": sent, "step": preview.step, "steps": preview.total}
            sent += 1


def preview_steps(number: int, total: int) -> list[int]:
    """The steps after which previews are sent: this many at even distances, at most one a step but the last."""
    number = min(number, total - 1)
    return [math.ceil(total * (i + 1) / (number + 1)) for i in range(number)]


def _partial(watched: Watched, preview: Any, asked: Asked) -> Event:
    image = watched.preview(preview)
    return {
        "type": "partial_image",
        **_fields(image, preview_file(image, asked.output_format, asked.output_compression), asked),
    }


def _completed(model: ServedModel, request: PromptRequest, watched: Watched, preview: Any, asked: Asked) -> Event:
    pictures = watched.finish(preview)
    made = drawn(pictures, model, request.id or "").model_dump()
    fields = _fields(pictures[0], picture_file(pictures, asked), asked)
    said = {"warnings": found} if (found := model.warnings(request)) else {}
    return {"type": "completed", **fields, "usage": _USAGE, "drawn": made, **said}


def _fields(image: Image.Image, data: bytes, asked: Asked) -> Event:
    return {
        "b64_json": as_base64(data),
        "created_at": int(time.time()),
        "size": size_of(image),
        "quality": "auto",
        "background": "opaque",
        "output_format": asked.output_format,
    }


def _event(name: str, data: Event) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()
