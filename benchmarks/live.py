"""A load on real systems: the engine as requests arrive, and a queue that is served batch by batch."""

from __future__ import annotations

import queue
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
from load import Floats, Load, say, take_batch

import stepfuse as sf
from stepfuse.serving.config import Serving

REPORT_SECONDS = 15.0

Images = npt.NDArray[np.float32]


@dataclass
class Run:
    """A load on a real system. Times are seconds on the load's clock, one a request.

    Attributes:
        load: The requests.
        label: What progress lines call it.
        submitted: When each was handed over.
        finished: When each was answered; 0: not yet.
        busy: Seconds in which the system worked.
        forwards, passes, held: As in ``Outcome``.
    """

    load: Load
    label: str
    submitted: Floats
    finished: Floats
    busy: float = 0.0
    forwards: int = 0
    passes: int = 0
    held: int = 0

    @classmethod
    def of(cls, load: Load, label: str) -> Run:
        """A run that has not begun."""
        return cls(load, label, np.zeros(len(load.at)), np.zeros(len(load.at)))

    def say(self) -> None:
        """Prints how far it is."""
        come, answered = np.count_nonzero(self.submitted), np.count_nonzero(self.finished)
        say(f"{self.label}: {come} of {len(self.load.at)} requests have come, {answered} are answered")

    def dispatch(self, began: float, arrive: Callable[[int], object]) -> None:
        """The client: sleeps until each arrival and hands the request over."""
        reported = began
        for i, at in enumerate(self.load.at):
            if (left := began + at - time.perf_counter()) > 0:
                time.sleep(left)
            self.submitted[i] = now = time.perf_counter() - began
            arrive(i)
            if began + now - reported > REPORT_SECONDS:
                reported = began + now
                self.say()

    def continuous(self, engine: sf.Engine) -> None:
        """Every request is submitted as it comes."""
        requests = [asked.request() for asked in self.load.asked]
        futures: list[Future[Images]] = []
        began = time.perf_counter() + 0.1

        def answered(i: int, future: Future[Images]) -> None:
            self.finished[i] = time.perf_counter() - began

        def arrive(i: int) -> None:
            futures.append(engine.submit(requests[i]))
            futures[i].add_done_callback(partial(answered, i))

        self.dispatch(began, arrive)
        for future in futures:
            future.result()

    def queued(self, serve: Callable[[Sequence[int]], object], max_rows: int) -> None:
        """One thread takes what waits and fits, first come, first served, and answers all of it when all is done."""
        waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
        began = time.perf_counter() + 0.1

        def work() -> None:
            line: deque[int] = deque()
            left = len(self.load.at)
            while left:
                while not (line and waiting.empty()):
                    line.append(waiting.get())
                batch = take_batch(self.load, line, max_rows)
                taken = time.perf_counter()
                serve(batch)
                now = time.perf_counter()
                self.finished[batch] = now - began
                self.busy += now - taken
                members = [self.load.asked[i] for i in batch]
                self.held += max(asked.steps for asked in members) * sum(asked.rows for asked in members)
                left -= len(batch)

        with ThreadPoolExecutor(1) as pool:
            working = pool.submit(work)
            self.dispatch(began, waiting.put)
            while wait([working], REPORT_SECONDS).not_done:
                self.say()
            working.result()


def new_engine(bundle: str, threads: int, serving: Serving) -> sf.Engine:
    """An engine that has run every number of rows once."""
    engine = sf.Engine.load(bundle, threads=threads, serving=serving)
    engine.warmup(range(1, serving.max_rows + 1))
    return engine


def sample_all(engine: sf.Engine, requests: Sequence[sf.Request]) -> None:
    """Submits all and waits for all."""
    for future in [engine.submit(request) for request in requests]:
        future.result()
