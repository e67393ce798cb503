"""Futures: of one request, and of many as they complete."""

from __future__ import annotations

import itertools
import queue
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from typing import Protocol, TypeVar, cast

from stepfuse.requests.resolution import ResolvedRequest
from stepfuse.serving.in_flight import Images, InFlightSample, Progress
from stepfuse.serving.service import Service
from stepfuse.serving.tracing import current_context

Result = TypeVar("Result")
Asked = TypeVar("Asked")


class Source(Protocol):
    """What results come from: a service."""

    def cancel(self, ids: Iterable[int]) -> None:
        """Withdraws what has these ids."""

    def require_other_thread(self) -> None:
        """Refuses a call that would wait for itself."""

    def awaited(self) -> AbstractContextManager[None]:
        """Notes Ctrl-C."""


class RequestFuture(Future[Result]):
    """The result of one request, to come. Cancelling works until it is there, between any two steps.

    Args:
        service: Where the request is.
        id: Of the request, there.
    """

    def __init__(self, service: Source, id: int) -> None:
        super().__init__()
        self._service = service
        self._id = id

    def cancel(self) -> bool:
        """Withdraws the request; False if it has ended otherwise."""
        cancelled = super().cancel()
        if cancelled:
            self._service.cancel([self._id])
        return cancelled

    def result(self, timeout: float | None = None) -> Result:
        """The result; raises what it failed with. Refused on the engine's own thread while it is still to come."""
        if not self.done():
            self._service.require_other_thread()
        with self._service.awaited():
            return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What it failed with. Refused on the engine's own thread while it is still to come."""
        if not self.done():
            self._service.require_other_thread()
        with self._service.awaited():
            return super().exception(timeout)

    def settle(self, result: Result | None, error: BaseException | None) -> None:
        """Sets the result, or the exception, unless the future was cancelled meanwhile."""
        if not self.set_running_or_notify_cancel():
            return
        if error is None:
            self.set_result(cast("Result", result))
        else:
            self.set_exception(error)


class ImageFuture(RequestFuture[Images]):
    """One image to come, queued when this is made.

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
        super().__init__(service, service.new_id())
        try:
            service.submit(InFlightSample(self._id, request, x, has_noise, self, context=current_context()), wait)
        except BaseException:  # Ctrl-C may come when it is queued already
            service.cancel([self._id])
            raise

    def on_progress(self, made: Sequence[Progress]) -> None:
        """Settles it at the end."""
        end = made[-1]
        if end.ended:
            self.settle(end.sample.x, end.error)


def as_completed(
    submit: Callable[[Asked], Future[Result]], requests: Iterable[Asked], limit: int
) -> Iterator[tuple[Asked, Future[Result]]]:
    """Submits requests, at most ``limit`` at a time, and yields each with its future when it has ended."""
    done: queue.SimpleQueue[Future[Result]] = queue.SimpleQueue()
    pending: dict[Future[Result], Asked] = {}
    left = iter(requests)
    try:
        while True:
            for request in itertools.islice(left, limit - len(pending)):
                future = _submitted(submit, request)
                pending[future] = request
                future.add_done_callback(done.put)
            if not pending:
                return
            future = done.get()
            yield pending.pop(future), future
    finally:
        for future in pending:
            future.cancel()


def _submitted(submit: Callable[[Asked], Future[Result]], request: Asked) -> Future[Result]:
    """The request's future; one that is refused has failed."""
    try:
        return submit(request)
    except Exception as error:
        refused: Future[Result] = Future()
        refused.set_exception(error)
        return refused
