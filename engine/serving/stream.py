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


class _Latest:
    """The latest preview of a request: all that the service holds of a stream, which its reader can so let go of."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.preview: Preview | None = None
        self.ended = False
        self.error: BaseException | None = None
        self.wake: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None

    @property
    def has_news(self) -> bool:
        """Whether a reader need not wait."""
        return self.preview is not None or self.ended

    def take(self) -> Preview | None:
        """The latest preview; None, or the error, behind the last one."""
        preview, self.preview = self.preview, None
        if preview is None and self.error is not None:
            raise self.error
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
        with self.changed:
            self.preview = preview
            self.ended, self.error = ended, error
            self.changed.notify_all()
            wake, self.wake = self.wake, None
        if wake is not None:
            with suppress(RuntimeError):  # the reader's event loop is closed
                wake[0].call_soon_threadsafe(wake[1].set)


class Stream(Iterator[Preview], AsyncIterator[Preview]):
    """Previews of one request, the last one its image; to be walked with ``for`` or ``async for``, by one reader.

    A slow reader holds nothing up: it is given the latest preview and misses those between. The request is withdrawn by
    ``close``, when the stream is left as a context manager, plain or asynchronous, when the task that awaits its next
    preview is cancelled, and when nothing refers to the stream any more, as after a ``break`` out of
    ``for preview in engine.stream(request)``.

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
        self._latest = _Latest()
        self._service = service
        self._id = service.new_id()
        x0, context = np.zeros_like(x), current_context()
        service.submit(
            InFlightSample(self._id, request, x, has_noise, self._latest, x0, watched=True, context=context), wait
        )

    def close(self) -> None:
        """Withdraws the request if it has not ended."""
        self._service.cancel([self._id])

    def __del__(self) -> None:
        if not self._latest.ended:
            with suppress(Exception):  # of a fork, or of a constructor that has raised
                self.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    async def __aenter__(self) -> Stream:
        return self

    async def __aexit__(self, *exception: object) -> None:
        self.close()

    def __next__(self) -> Preview:
        latest = self._latest
        with latest.changed:
            if not latest.has_news:
                self._service.require_other_thread()
            latest.changed.wait_for(lambda: latest.has_news)
            preview = latest.take()
        if preview is None:
            raise StopIteration
        return preview

    async def __anext__(self) -> Preview:
        import asyncio  # slow to import, and needed here alone

        latest, event = self._latest, asyncio.Event()
        with latest.changed:
            latest.wake = None if latest.has_news else (asyncio.get_running_loop(), event)
            waits = latest.wake is not None
        if waits:
            try:
                await event.wait()
            except asyncio.CancelledError:  # the reader is gone: a client has hung up, say
                self.close()
                raise
        with latest.changed:
            preview = latest.take()
        if preview is None:
            raise StopAsyncIteration
        return preview
