"""A stream of previews of one image, each made when the reader asks for the next."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from stepfuse.requests.resolution import ResolvedRequest
from stepfuse.serving.in_flight import Images, InFlightSample, Progress
from stepfuse.serving.service import Service
from stepfuse.serving.tracing import current_context

if TYPE_CHECKING:
    import asyncio


@dataclass(frozen=True, eq=False)
class Preview:
    """What a request has come to.

    Attributes:
        step: Steps done.
        total: Steps in all.
        x0: Shape (C, H, W), the clean sample implied so far; with ``step == total`` the image itself.
    """

    step: int
    total: int
    x0: Images


class Stream(Iterator[Preview], AsyncIterator[Preview]):
    """Previews of one request, the last one its image; to be walked with ``for`` or ``async for``, by one reader.

    A slow reader holds nothing up: it is given the latest preview and misses those between. ``close`` withdraws the
    request; as a context manager, plain or asynchronous, a stream does so when it is left.

    The request is queued when this is made.

    Args:
        service: Runs it.
        request: What to sample.
        x: Shape (C, H, W): starting noise, or memory for it.
        has_noise: Whether ``x`` holds the noise.
        wait: Seconds to wait for room in the queue.

    Raises:
        Exception: As ``Service.submit`` does.
    """

    def __init__(self, service: Service, request: ResolvedRequest, x: Images, has_noise: bool, wait: float) -> None:
        self._service = service
        self._id = service.new_id()
        self._changed = threading.Condition()
        self._latest: Preview | None = None
        self._ended = False
        self._error: BaseException | None = None
        self._wake: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None
        x0, context = np.zeros_like(x), current_context()
        service.submit(InFlightSample(self._id, request, x, has_noise, self, x0, watched=True, context=context), wait)

    def close(self) -> None:
        """Withdraws the request if it has not ended."""
        self._service.cancel([self._id])

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    async def __aenter__(self) -> Stream:
        return self

    async def __aexit__(self, *exception: object) -> None:
        self.close()

    def __next__(self) -> Preview:
        with self._changed:
            if not self._has_news():
                self._service.require_other_thread()
            self._changed.wait_for(self._has_news)
            preview = self._take()
        if preview is None:
            raise StopIteration
        return preview

    async def __anext__(self) -> Preview:
        import asyncio  # slow to import, and needed here alone

        event = asyncio.Event()
        with self._changed:
            self._wake = None if self._has_news() else (asyncio.get_running_loop(), event)
            waits = self._wake is not None
        if waits:
            await event.wait()
        with self._changed:
            preview = self._take()
        if preview is None:
            raise StopAsyncIteration
        return preview

    def _has_news(self) -> bool:
        return self._latest is not None or self._ended

    def _take(self) -> Preview | None:
        """The latest preview; None, or the error, behind the last one."""
        preview, self._latest = self._latest, None
        if preview is None and self._error is not None:
            raise self._error
        return preview

    def on_progress(self, made: Sequence[Progress]) -> None:
        """Publishes a copy of the preview, and in the end the image or the error."""
        last = made[-1]
        sample, total = last.sample, len(last.sample.request.table)
        if last.ended:
            self._publish(None if last.error else Preview(total, total, sample.x), ended=True, error=last.error)
        elif last.step < total and sample.x0 is not None:  # the last step's preview is the image, which the end brings
            self._publish(Preview(last.step, total, sample.x0.copy()))

    def _publish(self, preview: Preview | None, *, ended: bool = False, error: BaseException | None = None) -> None:
        with self._changed:
            self._latest = preview
            self._ended, self._error = ended, error
            self._changed.notify_all()
            wake, self._wake = self._wake, None
        if wake is not None:
            with suppress(RuntimeError):  # the reader's event loop is closed
                wake[0].call_soon_threadsafe(wake[1].set)
