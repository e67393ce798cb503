"""Requests from anywhere become batches: what waits while a run goes on makes up the next one."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from stepfuse.request import SampleRequest, starting_state
from stepfuse.runner import Images, Runner


@dataclass(frozen=True, eq=False)  # a job is itself: arrays do not compare to one truth
class Job:
    """One image to draw, and where it goes.

    Attributes:
        request: What to draw.
        noise: Starting noise of the sample's shape; None draws it from the seed.
        future: Holds the image, shape (C, H, W), or what went wrong.
    """

    request: SampleRequest
    noise: Images | None
    future: Future[Images] = field(default_factory=Future)


class Batcher:
    """One thread that draws what is submitted, oldest first.

    Args:
        runner: Draws them; as many jobs at a time as a forward has rows.
        shape: Shape of one image.
    """

    def __init__(self, runner: Runner, shape: tuple[int, ...]) -> None:
        self._runner = runner
        self._shape = shape
        self._waiting: deque[Job] = deque()
        self._thread_id: int | None = None
        # Not a daemon: the interpreter joins it before it tears down what the loop's thread still needs.
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="stepfuse")

    def submit(self, job: Job) -> None:
        """Queues a job.

        Raises:
            RuntimeError: If the batcher is closed.
        """
        self._waiting.append(job)
        try:
            self._executor.submit(self._draw_waiting)
        except RuntimeError as error:
            try:
                self._waiting.remove(job)
            except ValueError:
                return  # the last run took it along
            raise RuntimeError("the engine is closed") from error

    def close(self) -> None:
        """Draws what waits, then ends.

        Raises:
            RuntimeError: If called from a future's own callback, which runs on the thread that would have to end.
        """
        if threading.get_ident() == self._thread_id:
            raise RuntimeError("the engine cannot be closed from the callback of a future that it settles")
        self._executor.shutdown(wait=True)

    def _draw_waiting(self) -> None:
        jobs = [self._waiting.popleft() for _ in range(min(len(self._waiting), self._runner.max_rows))]
        jobs = [job for job in jobs if job.future.set_running_or_notify_cancel()]
        self._thread_id = threading.get_ident()
        try:
            if jobs:
                self._settle(jobs)
        finally:
            self._thread_id = None  # when this thread has ended, another may be given its number

    def _settle(self, jobs: Sequence[Job]) -> None:
        """A batch that fails is drawn again one by one, so that only the guilty fail."""
        try:
            images = self._draw(jobs)
        except BaseException as error:
            if len(jobs) == 1:
                jobs[0].future.set_exception(error)
                return
            for job in jobs:
                self._settle([job])
            return
        for job, image in zip(jobs, images, strict=True):
            job.future.set_result(image.copy())  # not a view, which would keep the whole batch alive

    def _draw(self, jobs: Sequence[Job]) -> Images:
        x = starting_state((len(jobs), *self._shape), None)
        for i, job in enumerate(jobs):
            if job.noise is not None:
                x[i] = job.noise
        return self._runner.run([job.request for job in jobs], x, [job.noise is not None for job in jobs])
