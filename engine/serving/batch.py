"""Who waits for samples: a future for one, a call of ``sample`` for many."""

from __future__ import annotations

import queue
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from stepfuse import _core
from stepfuse.requests.resolution import SampleRequest
from stepfuse.serving.inflight import Draw, Images
from stepfuse.serving.progress import ProgressBar
from stepfuse.serving.service import Service
from stepfuse.serving.tracing import current_context

#: ``callback(step, total, x0_preview)``: False stops the run, None or anything else goes on.
Callback = Callable[[int, int, Images], bool | None]

#: ``on_state(step, total, x)``: may change the states in place; its answer is as a callback's.
StateCallback = Callable[[int, int, Images], bool | None]


@dataclass(frozen=True)
class Looks:
    """What a caller sees of a run.

    Attributes:
        progress: Whether a bar is shown.
        callback: As in ``Engine.sample``. The samples rest until it returns; those of other callers go on.
        on_state: The same, with the states themselves.
    """

    progress: bool = False
    callback: Callback | None = None
    on_state: StateCallback | None = None

    @property
    def stops(self) -> bool:
        """Whether samples rest after each step until the caller has looked."""
        return self.callback is not None or self.on_state is not None


class Batch:
    """The samples of one call of ``sample``, which waits for all of them in its own thread.

    Args:
        service: Draws them.
        requests: One a sample.
        x: Shape (n, *shape); the samples are drawn in it.
        has_noise: Whether ``x`` holds starting noise.
        turns: Forwards that they would take alone; 0 if nobody asks.
        looks: What the caller sees meanwhile.
    """

    def __init__(
        self,
        service: Service,
        requests: Sequence[SampleRequest],
        x: Images,
        has_noise: bool,
        *,
        turns: int,
        looks: Looks,
    ) -> None:
        self._service = service
        self._requests, self._x, self._has_noise = requests, x, has_noise
        self._turns = turns
        self._looks = looks
        self._gate = _core.Gate() if looks.stops else None
        self._preview = np.zeros_like(x) if looks.stops else None
        self._ids: list[int] = []
        self._left = len(requests)
        self._error: BaseException | None = None
        self._news: queue.SimpleQueue[bool] = queue.SimpleQueue()  # whether more turns are to come
        self._stepped = False

    def run(self) -> Images:
        """Draws all samples, or as far as the callback lets them.

        Raises:
            BaseException: What the first sample that failed has failed with, or what the callback raised.
        """
        try:
            self._ids = self._service.submit_all(self._draws())
            if self._error is not None:  # came before the ids were known
                self._service.cancel(self._ids)
            with ExitStack() as stack:
                if self._gate is not None:
                    stack.enter_context(self._service.waits_for_this_thread())
                bar = stack.enter_context(ProgressBar(self._turns)) if self._looks.progress else None
                return self._wait(bar)
        except BaseException:
            self._service.cancel(self._ids)
            raise

    def _draws(self) -> list[Draw]:
        watched, context = self._looks.progress or self._looks.stops, current_context()
        draws = [
            Draw(request, self._x[i], self._has_noise, self, gate=self._gate, watched=watched, context=context, index=i)
            for i, request in enumerate(self._requests)
        ]
        if self._preview is not None:
            for draw, x0 in zip(draws, self._preview, strict=True):
                draw.x0 = x0
        return draws

    def _wait(self, bar: ProgressBar | None) -> Images:
        shown = 0
        while self._news.get():
            shown += 1
            if bar is not None:
                bar.update(shown, max(shown, self._turns))
            if self._gate is None or self._preview is None or self._error is not None:
                continue
            if not self._goes_on(shown, self._preview):
                self._service.cancel(self._ids)
                while self._news.get():  # until nothing holds the arrays any more
                    pass
                return self._preview
            self._service.open(self._gate)
        if self._error is not None:
            raise self._error
        return self._x

    def _goes_on(self, shown: int, preview: Images) -> bool:
        total = shown if self._left == 0 else max(self._turns, shown + 1)
        try:
            answers = [
                None if self._looks.on_state is None else self._looks.on_state(shown, total, self._x),
                None if self._looks.callback is None else self._looks.callback(shown, total, preview.copy()),
            ]
        except StopIteration:
            return False
        return all(answer is None or bool(answer) for answer in answers)

    def stepped(self, draw: Draw, step: int) -> None:
        """Remembers that there is news."""
        self._stepped = True

    def ended(self, draw: Draw, error: BaseException | None) -> None:
        """The first error ends all."""
        self._left -= 1
        if error is not None and self._error is None:
            self._error = error
            self._service.cancel(self._ids)

    def turn_over(self) -> None:
        """Tells the caller's thread. The samples rest then if it looks at them: their gate has closed."""
        if self._stepped:
            self._news.put(True)
            self._stepped = False
        if self._left == 0:
            self._news.put(False)
