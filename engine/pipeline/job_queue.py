"""The requests of a pipeline: those that wait, and those in flight."""

from __future__ import annotations

import itertools
import math
import queue
import time
from collections import deque

from stepfuse.errors import QueueFull
from stepfuse.pipeline.engines import seconds_left
from stepfuse.pipeline.job import PictureJob


class JobQueue:
    """Holds each job until it has ended, and lets ``most`` wait.

    Without a lock, which Ctrl-C could leave held: a job is in a dictionary or it is not. Who takes one out, and no
    other, says how it has ended.

    Args:
        most: How many may wait.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._waiting: dict[int, PictureJob] = {}
        self._jobs: dict[int, PictureJob] = {}
        self._in_flight: dict[int, PictureJob] = {}
        self._for_room: deque[queue.SimpleQueue[None]] = deque()

    def __contains__(self, job: PictureJob) -> bool:
        """Whether it has not ended."""
        return job.number in self._jobs

    @property
    def jobs(self) -> list[PictureJob]:
        """All that have not ended."""
        return list(self._jobs.values())

    @property
    def waiting(self) -> list[PictureJob]:
        """Those that have not begun."""
        return list(self._waiting.values())

    @property
    def in_flight(self) -> list[PictureJob]:
        """Those that have begun and still hold an engine, or memory; withdrawn ones too."""
        return list(self._in_flight.values())

    def enter(self, job: PictureJob, wait: float) -> None:
        """Adds a job, if need be after so many seconds.

        Raises:
            QueueFull: If there was no room.
        """
        until = None if math.isinf(wait) else time.monotonic() + wait
        while True:
            room: queue.SimpleQueue[None] = queue.SimpleQueue()
            self._for_room.append(room)  # before the look, so that no room is missed
            self._jobs[job.number] = self._waiting[job.number] = job
            if self._has_place(job.number) or self._waiting.pop(job.number, None) is None:
                return  # there is room, or it has begun meanwhile
            self._jobs.pop(job.number, None)
            left = seconds_left(until)
            try:
                if left == 0:
                    raise queue.Empty
                room.get(timeout=left)
            except queue.Empty:
                raise QueueFull(
                    f"the queue is full: {self._most} requests wait; try again later, or give submit a time to wait for"
                    " room"
                ) from None

    def _has_place(self, number: int) -> bool:
        """Whether it is among the first; of two that are added at once, the other is refused."""
        return len(self._waiting) <= self._most or number in itertools.islice(list(self._waiting), self._most)

    def begin(self, job: PictureJob) -> bool:
        """Puts a waiting job in flight; False if it waits no more."""
        begins = self._waiting.pop(job.number, None) is not None
        if begins:
            self._in_flight[job.number] = job
            self._make_room()
        return begins

    def land(self, job: PictureJob) -> None:
        """Takes it out of flight."""
        self._in_flight.pop(job.number, None)

    def find(self, number: int) -> PictureJob | None:
        """The job of this number; None if it has ended."""
        return self._jobs.get(number)

    def take(self, number: int) -> PictureJob | None:
        """Takes a job out, to end it; None if it has ended."""
        job = self._jobs.pop(number, None)
        if self._waiting.pop(number, None) is not None:
            self._make_room()
        return job

    def _make_room(self) -> None:
        while self._for_room:
            try:
                self._for_room.popleft().put(None)
            except IndexError:
                return
