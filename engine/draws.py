"""Who waits for samples: a future for one, a call of ``sample`` for many."""

from __future__ import annotations

import itertools
import queue
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import nullcontext

import numpy as np

from stepfuse import _core
from stepfuse.progress import ProgressBar
from stepfuse.request import Request, SampleRequest
from stepfuse.service import Draw, Images, Service
from stepfuse.tracing import current_context

#: ``callback(step, total, x0_preview)``: False stops the run, None or anything else goes on.
Callback = Callable[[int, int, Images], bool | None]


class ImageFuture(Future[Images]):
    """One image to come. Cancelling works until it is there: the request leaves between two steps.

    Args:
        service: Draws it.
        request: What to draw.
        x: Shape (C, H, W): starting noise, or memory for it.
        has_noise: Whether ``x`` holds the noise.
    """

    def __init__(self, service: Service, request: SampleRequest, x: Images, has_noise: bool) -> None:
        super().__init__()
        self._service = service
        self._draw = Draw(request, x, has_noise, self, context=current_context())

    def submit(self, wait: float) -> None:
        """Queues the request; raises as ``Service.submit`` does."""
        self._service.submit(self._draw, wait)

    def cancel(self) -> bool:
        """Withdraws the request; False if it has ended otherwise."""
        cancelled = super().cancel()
        if cancelled:
            self._service.cancel([self._draw])
        return cancelled

    def stepped(self, draw: Draw, step: int) -> None:
        """Nobody looks."""

    def ended(self, draw: Draw, error: BaseException | None) -> None:
        """Settles the future, unless its holder has cancelled it."""
        if not self.set_running_or_notify_cancel():
            return
        if error is None:
            self.set_result(draw.x)
        else:
            self.set_exception(error)

    def turn_over(self) -> None:
        """Nothing to do."""


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
                future = submit(request)
                pending[future] = request
                future.add_done_callback(done.put)
            if not pending:
                return
            future = done.get()
            yield pending.pop(future), future
    finally:
        for future in pending:
            future.cancel()


class Batch:
    """The samples of one call of ``sample``, which waits for all of them in its own thread.

    Args:
        service: Draws them.
        requests: One a sample.
        x: Shape (n, *shape); the samples are drawn in it.
        has_noise: Whether ``x`` holds starting noise.
        turns: Forwards that they would take alone; 0 if nobody asks.
        progress: Whether a bar is shown.
        callback: As in ``Engine.sample``. The samples rest until it returns; those of other callers go on.
    """

    def __init__(
        self,
        service: Service,
        requests: Sequence[SampleRequest],
        x: Images,
        has_noise: bool,
        *,
        turns: int,
        progress: bool,
        callback: Callback | None,
    ) -> None:
        self._service = service
        self._x = x
        self._turns = turns
        self._progress, self._callback = progress, callback
        self._gate = None if callback is None else _core.Gate()
        self._preview = None if callback is None else np.zeros_like(x)
        self._turn = 0
        self._left = len(requests)
        self._error: BaseException | None = None
        self._news: queue.SimpleQueue[Images | None] = queue.SimpleQueue()  # a preview a turn; None: all have ended
        self._stepped = False
        watched, context = progress or callback is not None, current_context()
        self._draws = [
            Draw(request, x[i], has_noise, self, gate=self._gate, watched=watched, context=context, index=i)
            for i, request in enumerate(requests)
        ]
        if self._preview is not None:
            for draw, x0 in zip(self._draws, self._preview, strict=True):
                draw.x0 = x0

    def run(self) -> Images:
        """Draws all samples, or as far as the callback lets them.

        Raises:
            BaseException: What the first sample that failed has failed with, or what the callback raised.
        """
        self._service.submit_all(self._draws)
        try:
            with ProgressBar(self._turns) if self._progress else nullcontext() as bar:
                return self._wait(bar)
        except BaseException:
            self._service.cancel(self._draws)
            raise

    def _wait(self, bar: ProgressBar | None) -> Images:
        shown = 0
        while (preview := self._news.get()) is not None:
            shown += 1
            if bar is not None:
                bar.update(shown, max(shown, self._turns))
            if self._callback is None or self._gate is None:
                continue
            if not self._goes_on(self._callback, shown, preview):
                self._service.cancel(self._draws)
                return preview
            self._service.open(self._gate)
        if self._error is not None:
            raise self._error
        return self._x

    def _goes_on(self, callback: Callback, shown: int, preview: Images) -> bool:
        total = shown if self._left == 0 else max(self._turns, shown + 1)
        with self._service.waits_for_this_thread():
            try:
                answer = callback(shown, total, preview.copy())
            except StopIteration:
                return False
        return answer is None or bool(answer)

    def stepped(self, draw: Draw, step: int) -> None:
        """Remembers that there is news."""
        self._stepped = True

    def ended(self, draw: Draw, error: BaseException | None) -> None:
        """The first error ends all."""
        self._left -= 1
        if error is not None and self._error is None:
            self._error = error
            self._service.cancel(self._draws)

    def turn_over(self) -> None:
        """Tells the caller's thread."""
        if self._stepped:
            self._news.put(self._x if self._preview is None else self._preview.copy())
            self._stepped = False
        if self._left == 0:
            self._news.put(None)
