"""Pictures drawn for a client that may go away meanwhile."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Executor, Future
from typing import Any, TypeVar

from starlette.types import Receive

from stepfuse.pipeline.pictures import Pictures
from stepfuse.requests.prompt_request import PromptRequest
from stepfuse.server.models import ServedModel, Watched

A = TypeVar("A")
T = TypeVar("T")


class ClientGoneError(Exception):
    """The client has closed its connection, so that there is no reader of an answer."""


class Withdrawals:
    """Withdraws what was queued for a client, even what a worker thread queues after that."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._withdraw: list[Callable[[], object]] = []
        self._withdrawn = False

    def add(self, withdraw: Callable[[], object]) -> None:
        """Has something withdrawn with the rest, at once if that is over."""
        with self._lock:
            if not self._withdrawn:
                self._withdraw.append(withdraw)
                return
        withdraw()

    def __enter__(self) -> Withdrawals:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._withdrawn = True
        for withdraw in self._withdraw:  # of what has ended this changes nothing
            withdraw()


async def draw(
    model: ServedModel,
    requests: Sequence[PromptRequest],
    made: Callable[[PromptRequest, Pictures], T],
    workers: Executor,
) -> list[T]:
    """Queues the pictures of a request and awaits them; withdraws them all if one fails, or if this is cancelled.

    Args:
        model: Draws them.
        requests: One a picture.
        made: Makes of each picture what is returned, on a thread of ``workers``.
        workers: Threads for what would hold up the event loop.

    Raises:
        Exception: As ``model.submit`` and its futures, and ``made``, do.
    """

    def queued(request: PromptRequest, withdrawals: Withdrawals) -> Future[T]:
        drawing = model.submit(request)
        withdrawals.add(drawing.future.cancel)
        return then(drawing.future, lambda sample: made(request, drawing.finish(sample)), workers)

    with Withdrawals() as withdrawals:
        within_span = contextvars.copy_context().run
        all_queued = workers.submit(within_span, lambda: [queued(request, withdrawals) for request in requests])
        pictures = await asyncio.wrap_future(all_queued)  # compiling a table may take a while
        return await asyncio.gather(*map(asyncio.wrap_future, pictures))


def then(future: Future[A], work: Callable[[A], T], workers: Executor) -> Future[T]:
    """What ``work`` makes of what a future will hold, on a thread of ``workers`` and without the event loop between.

    Returns:
        Holds that, or what the future or ``work`` raised; cancelling it leaves ``future`` as it is.
    """
    found: Future[T] = Future()

    def run() -> None:
        if not found.set_running_or_notify_cancel():
            return
        try:
            found.set_result(work(future.result()))
        except BaseException as error:  # as concurrent.futures' own workers do
            found.set_exception(error)

    future.add_done_callback(lambda _: workers.submit(run))
    return found


async def watch(model: ServedModel, requests: Sequence[PromptRequest]) -> list[Watched]:
    """Queues the pictures of a request to be watched; each is withdrawn when its stream is let go.

    Raises:
        Exception: As ``model.stream`` does.
    """
    return await asyncio.to_thread(lambda: [model.stream(request) for request in requests])


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Awaits work, which is cancelled if the client goes away.

    Args:
        receive: Of the request, whose body has been read.
        work: What the client waits for.

    Raises:
        ClientGoneError: If it has gone.
        Exception: As ``work`` does.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGoneError
        return task.result()
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
