"""The samples of one call of ``Engine.sample``."""

from __future__ import annotations

import queue
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from stepfuse import _core
from stepfuse.backends.device_samples import DeviceSample
from stepfuse.requests.resolution import ResolvedRequest
from stepfuse.serving.in_flight import Images, InFlightSample, Progress
from stepfuse.serving.progress import ProgressBar
from stepfuse.serving.service import Service
from stepfuse.serving.tracing import current_context

#: ``callback(step, total, x0_preview)``: False stops the run, None or anything else goes on.
Callback = Callable[[int, int, Images], bool | None]

#: ``on_state(step, total, x)``: may change the states in place; its answer is as a callback's.
StateCallback = Callable[[int, int, Images], bool | None]


@dataclass(frozen=True)
class Observers:
    """What follows a run while it goes on.

    Attributes:
        progress: Whether a bar is shown.
        callback: As in ``Engine.sample``. The samples rest until it returns; those of other callers go on.
        on_state: The same, with the states themselves.
    """

    progress: bool = False
    callback: Callback | None = None
    on_state: StateCallback | None = None

    @property
    def pause(self) -> bool:
        """Whether samples rest after each step until a callback has returned."""
        return self.callback is not None or self.on_state is not None

    @property
    def any(self) -> bool:
        """Whether anything follows the run."""
        return self.progress or self.pause


class SampleBatch:
    """Samples that are queued together and awaited by the calling thread.

    Args:
        service: Runs them.
        requests: One a sample.
        x: Shape (n, *shape); the samples come to be in it.
        has_noise: Whether ``x`` holds starting noise.
        iterations: Forwards that they would take alone; 0 if nothing observes them.
        observers: What follows the run.
        on_device: Whether samples stay in the GPU's memory, too, where there is one.

    Attributes:
        on_device: Where each of the samples that ``run`` returns is, too; None: on the host alone.
    """

    def __init__(
        self,
        service: Service,
        requests: Sequence[ResolvedRequest],
        x: Images,
        has_noise: bool,
        *,
        iterations: int,
        observers: Observers,
        on_device: bool = False,
    ) -> None:
        self._service = service
        self._requests, self._x, self._has_noise = requests, x, has_noise
        self._iterations = iterations
        self._observers = observers
        self._gate = _core.Gate() if observers.pause else None
        self._preview = np.zeros_like(x) if observers.pause else None
        self._ids = [service.new_id() for _ in requests]
        at = [service.device_sample() if on_device else None for _ in requests]
        self.on_device: Sequence[DeviceSample | None] = at
        self._left = len(requests)
        self._error: BaseException | None = None
        self._news: queue.SimpleQueue[bool] = queue.SimpleQueue()  # whether more iterations are to come

    def run(self) -> Images:
        """Runs all samples to their end, or as far as the callback lets them.

        Raises:
            BaseException: What the first sample that failed has failed with, or what the callback raised.
        """
        lease = self._service.lease(self._ids)  # if Ctrl-C comes a second time
        try:
            with self._service.awaited():
                self._service.submit_all(self._samples())
                if not self._observers.progress:
                    return self._wait(None)
                bar = ProgressBar(self._iterations, self._in_words())
                try:
                    bar.start()
                    return self._wait(bar)
                finally:
                    bar.stop()
        except BaseException:  # Ctrl-C among them
            self._service.cancel(self._ids)
            raise
        finally:
            del lease

    def _in_words(self) -> str:
        """``30 samples with ddim``."""
        number, samplers = len(self._requests), {request.table.sampler for request in self._requests}
        return f"{number} sample{'' if number == 1 else 's'} with {' and '.join(sorted(samplers))}"

    def _samples(self) -> list[InFlightSample]:
        """Made for the service alone: kept here they would be a reference cycle."""
        watched, context = self._observers.any, current_context()
        return [
            InFlightSample(
                self._ids[i],
                request,
                self._x[i],
                self._has_noise,
                self,
                x0=None if self._preview is None else self._preview[i],
                gate=self._gate,
                watched=watched,
                context=context,
                index=i,
                on_device=self.on_device[i],
            )
            for i, request in enumerate(self._requests)
        ]

    def _wait(self, bar: ProgressBar | None) -> Images:
        shown = 0
        while self._news.get():
            shown += 1
            if bar is not None:
                bar.update(shown, max(shown, self._iterations))
            if self._gate is None or self._preview is None or self._error is not None:
                continue
            if not self._service.call_back(self._goes_on, shown, self._preview):
                self._service.cancel(self._ids)
                while self._news.get():  # until nothing holds the arrays any more
                    pass
                self.on_device = [None] * len(self._requests)
                return self._preview
            self._service.open(self._gate)
        if self._error is not None:
            raise self._error
        return self._x

    def _goes_on(self, shown: int, preview: Images) -> bool:
        total = shown if self._left == 0 else max(self._iterations, shown + 1)
        on_state, callback = self._observers.on_state, self._observers.callback
        try:
            answers = [
                None if on_state is None else on_state(shown, total, self._x),
                None if callback is None else callback(shown, total, preview.copy()),
            ]
        except StopIteration:
            return False
        return all(answer is None or bool(answer) for answer in answers)

    def on_progress(self, made: Sequence[Progress]) -> None:
        """Wakes the calling thread; the first error ends all. Samples with a gate rest now: it has closed."""
        for end in (one for one in made if one.ended):
            self._left -= 1
            if end.error is not None and self._error is None:
                self._error = end.error
                self._service.cancel(self._ids)
        if any(not one.ended for one in made):
            self._news.put(True)
        if self._left == 0:
            self._news.put(False)
