"""Clients over aiohttp: requests that come at random, and as many at once as wanted; what each got, and when."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any

import aiohttp
from http_requests import GENERATIONS, STREAMED, body
from load import Asked, Load

PATIENCE = 60.0  # seconds after which a client gives up
_KEPT_SECONDS = 2.0  # a connection that is idle longer is not used again: uvicorn closes it after five


@dataclass
class Got:
    """What one request got; seconds are from the moment at which it was to be sent.

    Attributes:
        late: When it was sent.
        seconds: When its picture was there, or it failed.
        preview: When its first preview came; None: there was none.
        error: Why there is no picture; empty: there is one.
        answer: The answer, or the last event of a stream.
    """

    late: float = 0.0
    seconds: float = 0.0
    preview: float | None = None
    error: str = ""
    answer: dict[str, Any] | None = None

    def kept(self) -> dict[str, Any]:
        """Without the picture."""
        return {name: value for name, value in asdict(self).items() if name != "answer"}


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[aiohttp.ClientSession]:
    """A session with a service of this machine, of any number of connections that are kept open."""
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEPT_SECONDS)
    timeout = aiohttp.ClientTimeout(total=PATIENCE)
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}", connector=connector, timeout=timeout) as session:
        yield session


async def ask(session: aiohttp.ClientSession, fields: dict[str, Any], due: float) -> Got:
    """Sends a request and reads all of its answer.

    Args:
        session: Of ``connected``.
        fields: The body.
        due: When it was to be sent, by ``time.perf_counter``.
    """
    got = Got(late=time.perf_counter() - due)
    try:
        async with session.post(GENERATIONS, json=fields) as response:
            if response.status != 200:
                got.error = f"status {response.status}"
            elif response.content_type == "text/event-stream":
                await _read_events(response.content, got, due)
            else:
                got.answer = await response.json()
    except (aiohttp.ClientError, asyncio.TimeoutError, ValueError) as error:
        got.error = type(error).__name__
    got.seconds = time.perf_counter() - due
    return got


async def _read_events(lines: AsyncIterator[bytes], got: Got, due: float) -> None:
    event: dict[str, Any] = {}
    async for line in lines:
        if not line.startswith(b"data: "):
            continue
        if got.preview is None and b"partial_image" in line[:80]:
            got.preview = time.perf_counter() - due
        event = json.loads(line.removeprefix(b"data: "))
    if str(event.get("type", "")).endswith(".completed"):
        got.answer = event
    else:
        got.error = "the stream ended without a picture"


async def open_loop(port: int, load: Load) -> list[Got]:
    """Sends each request when it is due, however many are still unanswered; every fourth as a stream."""
    async with connected(port) as session:
        began = time.perf_counter() + 0.1
        tasks = []
        for index, (asked, at) in enumerate(zip(load.asked, load.at.tolist(), strict=True)):
            while (left := began + at - time.perf_counter()) > 0:  # asyncio wakes up a little early
                await asyncio.sleep(left)
            fields = body(asked, stream=index % STREAMED == 0)
            tasks.append(asyncio.create_task(ask(session, fields, began + at)))
        return await asyncio.gather(*tasks)


async def at_once(port: int, requests: Sequence[Asked], connections: int) -> list[Got]:
    """A closed loop: each connection sends its next request when the last one was answered."""
    waiting = iter(enumerate(requests))
    found: list[Got] = [Got()] * len(requests)

    async def client(session: aiohttp.ClientSession) -> None:
        for index, asked in waiting:
            found[index] = await ask(session, body(asked), time.perf_counter())

    async with connected(port) as session:
        await asyncio.gather(*(client(session) for _ in range(connections)))
    return found
