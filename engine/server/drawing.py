"""Pictures drawn for a client that may go away meanwhile."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor, Future
from typing import TypeVar

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

    def end(self) -> None:
        """Withdraws it all; of what has ended this changes nothing."""
        with self._lock:
            self._withdrawn = True
        for withdraw in self._withdraw:
            withdraw()


def draw(
    model: ServedModel,
    requests: Sequence[PromptRequest],
    made: Callable[[PromptRequest, Pictures], T],
    workers: Executor,
) -> asyncio.Future[list[T]]:
    """Queues the pictures of a request; withdraws them all if one fails, or if what is returned is cancelled.

    The event loop is woken once, when all are made: while the network computes it takes no processor from it.

    Args:
        model: Draws them.
        requests: One a picture.
        made: Makes of each picture what is returned, on a thread of ``workers``.
        workers: Threads for what would hold up the event loop, such as compiling a table.

    Returns:
        Holds what is made, in order, or what ``model.submit``, its futures or ``made`` raised.
    """
    withdrawals = Withdrawals()
    found: Future[list[T]] = Future()
    found.set_running_or_notify_cancel()  # withdrawn instead

    def queue() -> None:
        try:
            pictures = [queued(request) for request in requests]
        except BaseException as error:  # as concurrent.futures' own workers do
            found.set_exception(error)
        else:
            gather(pictures, found)

    def queued(request: PromptRequest) -> Future[T]:
        drawing = model.submit(request)
        withdrawals.add(drawing.future.cancel)
        return then(drawing.future, lambda sample: made(request, drawing.finish(sample)), workers)

    workers.submit(contextvars.copy_context().run, queue)  # within the request's span
    awaited = asyncio.wrap_future(found)
    awaited.add_done_callback(lambda _: withdrawals.end())
    return awaited


def gather(parts: Sequence[Future[T]], found: Future[list[T]]) -> None:
    """Has a future hold what all of some hold, in order, or what the first of them to fail raised."""
    lock, left = threading.Lock(), len(parts)

    def note(part: Future[T]) -> None:
        nonlocal left
        with lock:
            left -= 1
            if found.done():
                return
            if (error := part.exception()) is not None:
                found.set_exception(error)
            elif left == 0:
                found.set_result([one.result() for one in parts])

    for part in parts:
        part.add_done_callback(note)


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


async def unless_gone(receive: Receive, work: Awaitable[T]) -> T:
    """Awaits work, which is cancelled if the client goes away.

    Args:
        receive: Of the request, whose body has been read.
        work: What the client waits for.

    Raises:
        ClientGoneError: If it has gone.
        Exception: As ``work`` does.
    """
    awaited, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(receive))
    gone.add_done_callback(lambda one: None if one.cancelled() else awaited.cancel())
    try:
        return await awaited
    except asyncio.CancelledError:
        if gone.done() and not gone.cancelled():
            raise ClientGoneError from None
        raise
    finally:
        gone.cancel()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
