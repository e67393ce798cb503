"""A stream of previews of one image, each made when the reader asks for the next."""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np

from stepfuse.display import one_line
from stepfuse.requests.resolution import ResolvedRequest
from stepfuse.serving.future import Source
from stepfuse.serving.in_flight import Images, InFlightSample, Progress
from stepfuse.serving.service import Service
from stepfuse.serving.tracing import current_context

if TYPE_CHECKING:
    import asyncio

    from typing_extensions import Self


@dataclass(frozen=True, eq=False)
class Preview:
    """What a request has come to.

    Attributes:
        step: Steps done.
        total: Steps in all.
        x0: Shape (C, H, W), the clean sample implied so far; with ``step == total`` the image itself.

    Examples:
        >>> with sf.Engine.load("fashion") as engine:
        ...     for preview in engine.stream(sf.Request(cond="bag", steps=4)):
        ...         last = preview
        >>> last.step, last.total, last.x0.shape
        (4, 4, (1, 28, 28))
    """

    step: int
    total: int
    x0: Images

    __repr__ = one_line


P = TypeVar("P")


class Latest(Generic[P]):
    """The latest preview of a request: all that the service holds of a stream, which its reader can so let go of.

    Without a lock: Ctrl-C could leave it behind in the reader, and the loop's thread would wait for it.
    """

    def __init__(self) -> None:
        self.previews: deque[P] = deque(maxlen=1)
        self.news: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.ended = False
        self.error: BaseException | None = None
        self.wake: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None

    @property
    def has_news(self) -> bool:
        """Whether a reader need not wait."""
        return self.ended or bool(self.previews)

    def take(self) -> P | None:
        """The latest preview; None, or the error, behind the last one."""
        try:
            return self.previews.popleft()
        except IndexError:
            if self.error is not None:
                raise self.error from None
            return None

    def publish(self, preview: P, *, last: bool = False) -> None:
        """Takes the place of the preview before, unless that has been read."""
        self.previews.append(preview)
        self._notify(ended=last)

    def fail(self, error: BaseException) -> None:
        """Ends with an error."""
        self.error = error  # before the reader can find nothing
        self.previews.clear()
        self._notify(ended=True)

    def _notify(self, *, ended: bool) -> None:
        self.ended = ended
        self.news.put(None)
        wake = self.wake  # read behind what it is for: a reader sets it before it looks for that
        if wake is not None:
            with suppress(RuntimeError):  # the reader's event loop is closed
                wake[0].call_soon_threadsafe(wake[1].set)


class _LatestOfSample(Latest[Preview]):
    """Of a sample of an engine."""

    def on_progress(self, made: Sequence[Progress]) -> None:
        """Publishes a copy of the preview, and in the end the image or the error."""
        last = made[-1]
        sample, total = last.sample, len(last.sample.request.table)
        if last.error is not None:
            self.fail(last.error)
        elif last.ended:
            self.publish(Preview(total, total, sample.x), last=True)
        elif last.step < total and sample.x0 is not None:  # the last step's preview is the image, which the end brings
            self.publish(Preview(last.step, total, sample.x0.copy()))


class PreviewStream(Iterator[P], AsyncIterator[P]):
    """Previews of one request, the last one its result; to be walked with ``for`` or ``async for``, by one reader.

    A slow reader holds nothing up: it is given the latest preview and misses those between. The request is withdrawn by
    ``close``, when the stream is left as a context manager, plain or asynchronous, when the task that awaits its next
    preview is cancelled, and when nothing refers to the stream any more, as after a ``break`` out of
    ``for preview in engine.stream(request)``.

    Args:
        service: Where the request is.
        id: Of the request, there.
        latest: Where its previews are published.
        lease: Withdraws the request when it is let go, as with this.
    """

    def __init__(self, service: Source, id: int, latest: Latest[P], lease: object) -> None:
        self._latest = latest
        self._service = service
        self._id = id
        self._withdrawn_with_this = lease

    def close(self) -> None:
        """Withdraws the request if it has not ended."""
        self._service.cancel([self._id])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        self.close()

    def __next__(self) -> P:
        latest = self._latest
        if not latest.has_news:
            self._service.require_other_thread()
        with self._service.awaited():
            while not latest.has_news:
                latest.news.get()
        preview = latest.take()
        if preview is None:
            raise StopIteration
        return preview

    async def __anext__(self) -> P:
        import asyncio  # slow to import, and needed here alone

        latest, event = self._latest, asyncio.Event()
        latest.wake = asyncio.get_running_loop(), event
        if not latest.has_news:
            try:
                await event.wait()
            except asyncio.CancelledError:  # the reader is gone: a client has hung up, say
                self.close()
                raise
        latest.wake = None
        preview = latest.take()
        if preview is None:
            raise StopAsyncIteration
        return preview


class Stream(PreviewStream[Preview]):
    """Previews of one image, whose request is queued when this is made.

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
        latest, id = _LatestOfSample(), service.new_id()
        super().__init__(service, id, latest, service.lease([id]))
        x0, context = np.zeros_like(x), current_context()
        service.submit(InFlightSample(id, request, x, has_noise, latest, x0, watched=True, context=context), wait)
