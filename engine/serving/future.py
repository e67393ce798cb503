"""A future for one image, and the futures of many as they complete."""

from __future__ import annotations

import itertools
import queue
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future

from stepfuse.requests.request import Request
from stepfuse.requests.resolution import ResolvedRequest
from stepfuse.serving.in_flight import Images, InFlightSample, Progress
from stepfuse.serving.service import Service
from stepfuse.serving.tracing import current_context


class ImageFuture(Future[Images]):
    """One image to come, queued when this is made. Cancelling works until it is there, between any two steps.

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
        super().__init__()
        self._service = service
        self._id = service.new_id()
        try:
            service.submit(InFlightSample(self._id, request, x, has_noise, self, context=current_context()), wait)
        except BaseException:  # Ctrl-C may come when it is queued already
            service.cancel([self._id])
            raise

    def cancel(self) -> bool:
        """Withdraws the request; False if it has ended otherwise."""
        cancelled = super().cancel()
        if cancelled:
            self._service.cancel([self._id])
        return cancelled

    def result(self, timeout: float | None = None) -> Images:
        """The image; raises what it failed with. Refused on the engine's own thread while it is still to come."""
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

    def on_progress(self, made: Sequence[Progress]) -> None:
        """Sets the result or the exception, unless the future was cancelled meanwhile."""
        end = made[-1]
        if not end.ended or not self.set_running_or_notify_cancel():
            return
        if end.error is None:
            self.set_result(end.sample.x)
        else:
            self.set_exception(end.error)


def as_completed(
    submit: Callable[[Request], Future[Images]], requests: Iterable[Request], limit: int
) -> Iterator[tuple[Request, Future[Images]]]:
    """Submits requests, at most ``limit`` at a time, and yields each with its future when it has ended."""
    done: queue.SimpleQueue[Future[Images]] = queue.SimpleQueue()
    pending: dict[Future[Images], Request] = {}
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


def _submitted(submit: Callable[[Request], Future[Images]], request: Request) -> Future[Images]:
    """The request's future; one that is refused has failed."""
    try:
        return submit(request)
    except Exception as error:
        refused: Future[Images] = Future()
        refused.set_exception(error)
        return refused
