"""HTTP connections whose clients have to write and to read within bounds, which uvicorn alone does not ask."""

from __future__ import annotations

import asyncio
import socket

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_HEADER_BYTES = 1 << 16  # of one request; what came with its end is not counted


def protocol_within(seconds: float) -> type[HttpToolsProtocol]:
    """A protocol that closes a connection whose next headers take longer, or whose client reads nothing for as long.

    Idle connections between two requests have uvicorn's own bound (``timeout_keep_alive``). That an answer is not read
    is for the system to notice: it holds the part that the client has not taken (TCP_USER_TIMEOUT, RFC 5482). Headers
    that are longer than 64 KiB are refused, since the parser keeps them.
    """

    class Bounded(HttpToolsProtocol):
        _timer: asyncio.TimerHandle | None = None
        _in_headers = False
        _header_bytes = 0

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            connection = transport.get_extra_info("socket")
            if connection is not None and connection.family in (socket.AF_INET, socket.AF_INET6):
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(seconds * 1000))
            self._timer = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

        def on_message_begin(self) -> None:
            self._in_headers, self._header_bytes = True, 0
            super().on_message_begin()

        def on_headers_complete(self) -> None:
            self._in_headers = False
            super().on_headers_complete()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._header_bytes += len(data) if self._in_headers else 0
            if self._header_bytes > _HEADER_BYTES and not self.transport.is_closing():
                self.send_400_response(f"headers must be at most {_HEADER_BYTES:,} bytes")
            elif self.cycle is not None and not self.cycle.response_complete:
                self._stop()
            elif self._timer is None:
                self._timer = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop()
            super().connection_lost(exc)

        def _stop(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    return Bounded
