"""What every request passes: its id, key and trace, the bounds of its body, metrics, and the access log."""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Mapping
from typing import Any

import anyio
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stepfuse.display import NAME, brief, byte_size, printable
from stepfuse.server.drawing import ClientGoneError
from stepfuse.server.errors import ApiError, api_error
from stepfuse.server.http_metrics import HttpMetrics
from stepfuse.server.keys import Keys
from stepfuse.server.lifecycle import Lifecycle
from stepfuse.server.limits import Limits
from stepfuse.server.tracing import parent_of

access = logging.getLogger("stepfuse.server.access")

_ID = re.compile(r"[\w.:+/=@-]{1,128}", re.ASCII)
_CLIENT_GONE = 499  # of the log and metrics; no client reads it


class Front:
    """Pure ASGI, so that a client that goes away is seen by what it waits for.

    Args:
        app: What answers.
        keys: Who may ask.
        limits: Of bodies.
        uploads: Paths whose bodies hold pictures.
        lifecycle: Whether work is taken; every POST is work.
        metrics: Where requests are counted.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        keys: Keys,
        limits: Limits,
        uploads: tuple[str, ...],
        lifecycle: Lifecycle,
        metrics: HttpMetrics,
    ) -> None:
        self._app, self._keys, self._limits, self._uploads = app, keys, limits, uploads
        self._lifecycle, self._metrics = lifecycle, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = _Answer(send)
        state = scope.setdefault("state", {})
        headers = Headers(scope=scope)
        self._metrics.in_flight.inc()
        try:
            answer.id = state["request_id"] = _id_of(headers)
            path = scope["path"].removeprefix(scope.get("root_path", ""))  # an app may be mounted below another path
            self._keys.check(path, headers.get("authorization"))
            most = self._limits.upload_bytes if path in self._uploads else self._limits.body_bytes
            body = _Body(receive, headers, most, self._limits.body_seconds)
            with parent_of(headers):
                if scope["method"] == "POST":
                    with self._lifecycle.work():
                        await self._app(scope, body.receive, answer.send)
                else:
                    await self._app(scope, body.receive, answer.send)
        except ClientGoneError:
            answer.status = _CLIENT_GONE
        except Exception as error:
            found = api_error(error)
            if answer.began is None:
                await JSONResponse(found.body, found.status_code, found.headers)(scope, receive, answer.send)
        finally:
            self._observe(scope, state, answer)

    def _observe(self, scope: Scope, state: Mapping[str, Any], answer: _Answer) -> None:
        seconds = time.perf_counter() - answer.asked
        route = getattr(scope.get("route"), "path", "other")
        self._metrics.in_flight.dec()
        self._metrics.requests.labels(_method(scope), route, answer.status).inc()
        self._metrics.seconds.labels(route).observe(seconds)
        if answer.began is not None:
            self._metrics.first_seconds.labels(route).observe(answer.began)
        facts = {
            "request_id": answer.id,
            "method": printable(scope["method"], NAME),
            "path": printable(scope["path"], NAME),
            "status": answer.status,
            "seconds": round(seconds, 6),
            "bytes": answer.bytes,
            "client": (scope.get("client") or ("",))[0],
            "user": state.get("user"),
            "model": state.get("model"),
        }
        access.info("%(method)s %(path)s %(status)s in %(seconds).3f s [%(request_id)s]", facts, extra=facts)


class _Answer:
    """An answer on its way: with the request's id, and what is noted of it."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.asked = time.perf_counter()
        self.id = ""
        self.status, self.bytes = 0, 0
        self.began: float | None = None

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            MutableHeaders(scope=message)["X-Request-ID"] = self.id
        elif message["type"] == "http.response.body":
            if self.began is None:
                self.began = time.perf_counter() - self.asked
            self.bytes += len(message.get("body", b""))
        await self._send(message)


class _Body:
    """A body within its bounds of bytes and of time.

    Raises:
        ApiError: 413 at once, if its headers say that it is too long.
    """

    def __init__(self, receive: Receive, headers: Headers, most: int, seconds: float) -> None:
        self._receive, self._most = receive, most
        self._seconds, self._end = seconds, time.monotonic() + seconds
        self._bytes, self._more = 0, True
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length[:20]) > most:
            raise self._too_long(int(length[:20]))

    async def receive(self) -> Message:
        if not self._more:
            return await self._receive()
        try:
            with anyio.fail_after(max(self._end - time.monotonic(), 0)):
                message = await self._receive()
        except TimeoutError:
            rule = f"a body must have come within {self._seconds:g} seconds, got {byte_size(self._bytes)} of it"
            raise ApiError(408, rule, code="slow_body", headers={"Connection": "close"}) from None
        self._bytes += len(message.get("body", b""))
        self._more = message.get("more_body", False)
        if self._bytes > self._most:
            raise self._too_long(self._bytes)
        return message

    def _too_long(self, got: int) -> ApiError:
        rule = f"a body must be at most {byte_size(self._most)} here, got {byte_size(got)}"
        return ApiError(413, rule, code="body_too_large", headers={"Connection": "close"})


def _id_of(headers: Headers) -> str:
    """The request's id, as the client names it or a new one."""
    given = headers.get("x-request-id")
    if given is None:
        return uuid.uuid4().hex
    if _ID.fullmatch(given) is None:
        rule = "X-Request-ID must be 1 to 128 letters, digits and any of . _ : + / = @ -"
        raise ApiError(400, f"{rule}, got {brief(given)}", code="invalid_request_id")
    return given


def _method(scope: Scope) -> str:
    """For metrics: a client may invent methods."""
    known = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH")
    return scope["method"] if scope["method"] in known else "other"
