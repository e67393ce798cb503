"""How far a run is: turns of the loop, counted beforehand, and a bar that shows them."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from types import TracebackType

import numpy as np

from stepfuse.request import SampleRequest


def turns_needed(requests: Sequence[SampleRequest], max_rows: int) -> int:
    """Forwards that these samples take together under the first-come planner of ``csrc/core/planner.cpp``.

    A guided sample holds two rows up to its last guided step, and one from there to its end.
    """
    waiting = deque((_guided_turns(request), len(request.table)) for request in requests)
    running: list[tuple[int, int]] = []  # the turns at which a sample gives back its second row, and its first
    now = 0
    while waiting or running:
        held = sum(1 + (second > now) for second, _ in running)
        while waiting and held + 1 + (waiting[0][0] > 0) <= max_rows:
            guided, length = waiting.popleft()
            running.append((now + guided, now + length))
            held += 1 + (guided > 0)
        if not running:  # a sample wider than a forward: the loop refuses it with its own message
            return now
        now = min(turn for turns in running for turn in turns if turn > now)
        running = [turns for turns in running if turns[1] > now]
    return now


def _guided_turns(request: SampleRequest) -> int:
    if request.cond is None:
        return 0
    guided = np.flatnonzero(request.table.guided)
    return int(guided[-1]) + 1 if guided.size else 0


class ProgressBar:
    """A bar over ``total`` turns on standard error, gone when the run is."""

    def __init__(self, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("sampling"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps"),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=Console(stderr=True), transient=True)
        self._task = self._progress.add_task("sampling", total=total)

    def update(self, turn: int) -> None:
        """Shows that ``turn`` turns are done."""
        self._progress.update(self._task, completed=turn)

    def __enter__(self) -> ProgressBar:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
