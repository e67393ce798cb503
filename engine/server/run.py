"""Runs an app until a signal ends it: the first drains it, a second one gives up what runs."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from stepfuse.server.lifecycle import Lifecycle
from stepfuse.server.protocol import protocol_within

_LAST = 2  # seconds for the last answers to be sent
# Seconds that a connection may be idle. Clients and load balancers that keep one for as long as the service does, or
# longer, send requests on it that are lost: httpx, and with it OpenAI's client, keeps them for 5, AWS's for 60.
_IDLE = 75


def serve(
    app: FastAPI,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    grace: float = 30.0,
    header_seconds: float = 30.0,
    abort: Callable[[], None],
    started: Callable[[str], None],
) -> bool:
    """Serves an app on this thread until it is drained: by SIGTERM or SIGINT, or by ``app.state.lifecycle.drain()``.

    It then refuses new work, and ends when what runs is answered. What still runs after ``grace`` seconds, or at a
    second signal, is given up by ``abort``.

    Args:
        app: Of ``create_app``.
        host: An address to listen at.
        port: 0 lets the system choose.
        grace: Seconds that draining may take.
        header_seconds: Seconds in which a request's headers must have come.
        abort: Ends the models, so that their requests fail.
        started: Called with the url once requests are taken.

    Returns:
        Whether everything was answered.

    Raises:
        OSError: If the address cannot be listened at.
    """
    listener = _listener(host, port)
    name = f"[{host}]" if ":" in host else host
    config = uvicorn.Config(
        app,
        http=protocol_within(header_seconds),
        lifespan="on",
        ws="none",
        log_config=None,
        access_log=False,  # the app writes its own, with more in it
        server_header=False,
        timeout_graceful_shutdown=_LAST,
        timeout_keep_alive=_IDLE,
    )
    server = _Server(config, app.state.lifecycle, grace, abort, lambda: started(f"http://{name}:{_port(listener)}"))
    with listener:
        server.run(sockets=[listener])
    return not server.aborted


class _Server(uvicorn.Server):
    """uvicorn, whose signals drain it.

    Attributes:
        aborted: Whether something was given up.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        lifecycle: Lifecycle,
        grace: float,
        abort: Callable[[], None],
        started: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self._lifecycle, self._grace, self._abort, self._started = lifecycle, grace, abort, started
        self._end: float | None = None
        self.aborted = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Notes a signal; it is acted on within a tenth of a second."""
        self._lifecycle.drain()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begins to listen, and says so."""
        await super().startup(sockets)
        self._started()

    async def on_tick(self, counter: int) -> bool:
        """Whether it is to end: called every tenth of a second."""
        if self._lifecycle.draining and not self.should_exit:
            now = time.monotonic()
            self._end = now + self._grace if self._end is None else self._end
            enough = self._lifecycle.giving_up or now > self._end
            if self._lifecycle.running and enough:
                self.aborted = True
                await asyncio.to_thread(self._abort)
            self.should_exit = enough or not self._lifecycle.running
        return await super().on_tick(counter)


def _listener(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise OSError(error.errno, f"cannot listen at {host}, port {port}: {error.strerror}") from error
    return listener


def _port(listener: socket.socket) -> Any:
    return listener.getsockname()[1]
