"""Clients of all manners over bare sockets: they ask and read, vanish, send garbage, or read slowly."""

from __future__ import annotations

import asyncio
import json
import random
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from http_requests import GENERATIONS, Levels, body, picture, same
from load import Asked

DRAW, STREAM, SLOW, REFUSED, VANISH, GARBAGE = "draw", "stream", "slow", "refused", "vanish", "garbage"
#: How many of a hundred requests are of each kind.
SHARES = {DRAW: 55, STREAM: 15, SLOW: 5, REFUSED: 5, VANISH: 15, GARBAGE: 5}
#: What every request of a kind must come to.
RIGHT = "right"

_PATIENCE = 300.0  # seconds: with hundreds at once on a busy machine an answer takes long; a hang must end
_SLOW_BYTES, _SLOW_SECONDS = 256, 0.02
_GARBAGE = (b"\x00\xff\x16\x03\r\n\r\n", b"POST / HTXP/1.1\r\n\r\n", b"GET\r\n\r\n", b"\r\n" * 3 + b"{}\r\n\r\n")
_REFUSED: tuple[Mapping[str, Any], ...] = ({"n": 0}, {"num_inference_steps": -1}, {"sampler": "none"}, {"colour": 1})


class Connection:
    """One connection, kept from request to request."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def to(cls, port: int, *, buffer: int | None = None) -> Connection:
        """Connects to a service of this machine; ``buffer`` bounds the bytes that wait to be read."""
        one = socket.socket()
        one.setblocking(False)
        if buffer is not None:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        await asyncio.get_running_loop().sock_connect(one, ("127.0.0.1", port))
        return cls(*await asyncio.open_connection(sock=one, limit=buffer or 1 << 16))

    async def send(self, fields: Mapping[str, Any]) -> None:
        """Sends a request for a picture."""
        text = json.dumps(fields).encode()
        head = f"POST {GENERATIONS} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        self.writer.write(f"{head}Content-Length: {len(text)}\r\n\r\n".encode() + text)
        await self.writer.drain()

    async def answer(self, read: Callable[[int], Awaitable[bytes]] | None = None) -> tuple[int, bytes]:
        """The status and body of an answer.

        Args:
            read: Reads as many bytes as it is asked for; this connection's own way unless given.

        Raises:
            asyncio.IncompleteReadError: If the connection ends before the answer does.
        """
        read = read or self.reader.readexactly
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
        status, headers = int(lines[0].split()[1]), dict(line.split(": ", 1) for line in lines[1:] if line)
        if "content-length" in headers:
            return status, await read(int(headers["content-length"]))
        data = b""
        while length := int((await self.reader.readline()) or b"0", 16):  # chunks of RFC 9112, section 7.1
            data += await read(length)
            await self.reader.readexactly(2)
        await self.reader.readexactly(2)
        return status, data

    def close(self, *, abort: bool = False) -> None:
        """Closes it; ``abort`` drops what has not been sent or read."""
        if abort:
            self.writer.transport.abort()
        else:
            self.writer.close()


class Client:
    """Sends requests one after the other, each of some kind, and says what each came to.

    Args:
        port: Of the service.
        seed: Of what is left to chance.
    """

    def __init__(self, port: int, seed: int) -> None:
        self._port, self._rng = port, random.Random(seed)
        self._connection: Connection | None = None

    async def connect(self) -> None:
        """Opens the connection that this client keeps."""
        self._connection = await Connection.to(self._port)

    async def run(self, kind: str, asked: Asked, wanted: Levels) -> str:
        """What a request of a kind came to: ``RIGHT``, or what was wrong.

        Args:
            kind: A key of ``SHARES``.
            asked: What is drawn.
            wanted: Its picture.
        """
        try:
            return await asyncio.wait_for(getattr(self, f"_{kind}")(asked, wanted), _PATIENCE)
        except (OSError, EOFError, ValueError, asyncio.TimeoutError) as error:
            self.end()
            return f"{type(error).__name__}: {error}"

    def end(self) -> None:
        """Closes the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    async def _draw(self, asked: Asked, wanted: Levels) -> str:
        connection = await self._kept()
        await connection.send(body(asked))
        return _judged(*await connection.answer(), wanted)

    async def _stream(self, asked: Asked, wanted: Levels) -> str:
        connection = await self._kept()
        await connection.send(body(asked, stream=True))
        return _judged_events(*await connection.answer(), asked, wanted)

    async def _slow(self, asked: Asked, wanted: Levels) -> str:
        connection = await self._other(buffer=4 * _SLOW_BYTES)

        async def read(length: int) -> bytes:
            data = b""
            while len(data) < length:
                data += await connection.reader.readexactly(min(_SLOW_BYTES, length - len(data)))
                await asyncio.sleep(_SLOW_SECONDS)
            return data

        try:
            await connection.send(body(asked, stream=True))
            status, data = await connection.answer(read)
            return _judged_completed(status, data, wanted)
        finally:
            connection.close()

    async def _refused(self, asked: Asked, _: Levels) -> str:
        connection = await self._kept()
        await connection.send({**body(asked), **self._rng.choice(_REFUSED)})
        status, data = await connection.answer()
        return RIGHT if status == 400 and "message" in json.loads(data)["error"] else f"status {status}"

    async def _vanish(self, asked: Asked, _: Levels) -> str:
        """Goes away at once, while it waits, or in mid-answer; politely or not."""
        connection = await self._other()
        await connection.send(body(asked, stream=self._rng.random() < 0.5))
        where = self._rng.random()
        if where > 0.6:
            await connection.reader.read(self._rng.randint(1, 500))
        elif where > 0.3:
            await asyncio.sleep(self._rng.random() / 10)
        connection.close(abort=self._rng.random() < 0.5)
        return RIGHT

    async def _garbage(self, *_: object) -> str:
        """Sends what is no HTTP: the service must answer 400 or close."""
        connection = await self._other()
        try:
            connection.writer.write(self._rng.choice(_GARBAGE))
            answer = await connection.reader.read()
            return RIGHT if answer[:12] in (b"", b"HTTP/1.1 400") else f"answered {answer[:80]!r}"
        except ConnectionResetError:
            return RIGHT
        finally:
            connection.close(abort=True)

    async def _other(self, *, buffer: int | None = None) -> Connection:
        """In the place of the kept one, which the service would close if it were idle for longer than five seconds."""
        self.end()
        return await Connection.to(self._port, buffer=buffer)

    async def _kept(self) -> Connection:
        if self._connection is None:
            await self.connect()
        assert self._connection is not None
        return self._connection


def _judged(status: int, data: bytes, wanted: Levels) -> str:
    if status != 200:
        return f"status {status}: {data[:200]!r}"
    return RIGHT if same(picture(json.loads(data)), wanted) else "another picture"


def _events(data: bytes) -> list[dict[str, Any]]:
    return [json.loads(line.removeprefix(b"data: ")) for line in data.splitlines() if line.startswith(b"data: ")]


def _judged_completed(status: int, data: bytes, wanted: Levels) -> str:
    """A slow reader may miss previews, and nothing else."""
    events = _events(data) if status == 200 else []
    if not events or events[-1]["type"] != "image_generation.completed":
        return f"status {status}: {data[-200:]!r}"
    return RIGHT if same(picture(events[-1]), wanted) else "another picture"


def _judged_events(status: int, data: bytes, asked: Asked, wanted: Levels) -> str:
    found = _judged_completed(status, data, wanted)
    steps = [event["step"] for event in _events(data)[:-1]] if found == RIGHT else []
    in_order = steps == sorted(set(steps)) and all(0 < step < asked.steps for step in steps)
    return found if in_order else f"previews after the steps {steps} of {asked.steps}"
