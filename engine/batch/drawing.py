"""Rows drawn many at a time, and given back in their order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

from stepfuse.batch.records import Drawn, record_of
from stepfuse.batch.rows import Row, request_of
from stepfuse.display import shortened
from stepfuse.errors import CudaError, EngineClosed, StepfuseError
from stepfuse.pipeline.image_files import file_bytes, save_options
from stepfuse.server.models import Drawing, ServedModel

Task = TypeVar("Task")
Result = TypeVar("Result")

#: Errors that are a row's own, and those among them that every other row would have as well.
_OF_A_ROW, _OF_ALL = (ValueError, TypeError, StepfuseError), (CudaError, EngineClosed)


class Drawer:
    """Draws rows with a model; a context manager. Any number of them share its forwards.

    Args:
        model: Draws them.
        image_format: Of the pictures' files: ``png``, ``jpeg`` or ``webp``.
        keep: Columns that no request has, which records keep.
    """

    def __init__(self, model: ServedModel, *, image_format: str = "png", keep: Collection[str] = ()) -> None:
        self._model, self._suffix, self._keep = model, f".{image_format}", keep
        self._pool = ThreadPoolExecutor(thread_name_prefix="stepfuse-batch")
        # Enough to fill the forwards while a row of many steps holds back those that are behind it.
        self.most = min(4 * model.serving.row_limit, model.serving.max_queue)

    def __enter__(self) -> Drawer:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def submit(self, row: Row, place: Callable[[Drawn], Drawn] = lambda drawn: drawn) -> Future[Drawn]:
        """Queues a row.

        Args:
            row: The row.
            place: Is given what was drawn, on another thread, and returns what is left to be written of it.

        Returns:
            Holds what was drawn, or why nothing was. Cancelling it withdraws the request.

        Raises:
            EngineClosed: If the model is closed. The future raises this and ``CudaError``, of which every other row
                would fail as well, and what ``place`` raises.
        """
        try:
            request = request_of(row, self._keep)
            drawing = self._model.submit(request)
        except _OF_ALL:
            raise
        except _OF_A_ROW as error:
            refused: Future[Drawn] = Future()
            refused.set_result(place(Drawn(record_of(row, None, self._keep, error=shortened(str(error))))))
            return refused

        def finish() -> Drawn:
            try:
                pictures = drawing.finish(drawing.future.result())
                file = file_bytes(pictures[0], save_options(self._suffix, pictures.facts[0]))
            except _OF_ALL:
                raise
            except _OF_A_ROW as error:
                return Drawn(record_of(row, request, self._keep, error=shortened(str(error))))
            return Drawn(record_of(row, request, self._keep, **self._model.drawn(pictures)), file)

        return self._after(drawing, lambda: place(finish()))

    def draw(self, rows: Iterable[Row]) -> Iterator[Drawn]:
        """Draws rows, in their order. Raises as ``submit`` does."""
        return (drawn for _, drawn in in_order(rows, self.submit, self.most))

    def _after(self, drawing: Drawing, finish: Callable[[], Drawn]) -> Future[Drawn]:
        """What ``finish`` returns, which runs on a thread of the pool once the sample has ended."""
        found: Future[Drawn] = Future()

        def run() -> None:
            if found.set_running_or_notify_cancel():
                try:
                    found.set_result(finish())
                except BaseException as error:
                    found.set_exception(error)

        def ended(_: Future[Any]) -> None:  # on the engine's thread
            with suppress(RuntimeError):  # the pool is shut down: the result has no reader
                self._pool.submit(run)

        drawing.future.add_done_callback(ended)
        found.add_done_callback(lambda one: one.cancelled() and drawing.future.cancel())
        return found


def in_order(
    tasks: Iterable[Task], submit: Callable[[Task], Future[Result]], most: int
) -> Generator[tuple[Task, Result], None, None]:
    """Results in the order of their tasks, of which up to ``most`` are in flight; the others are not taken yet.

    Leaving it early cancels what is in flight. Raises as ``submit`` and its futures do.
    """
    waiting: deque[tuple[Task, Future[Result]]] = deque()

    def first() -> tuple[Task, Result]:
        task, future = waiting[0]
        result = future.result()
        waiting.popleft()
        return task, result

    try:
        for task in tasks:
            waiting.append((task, submit(task)))
            if len(waiting) == most:
                yield first()
        while waiting:
            yield first()
    finally:
        for _, future in waiting:
            future.cancel()
