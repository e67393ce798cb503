"""How far a run is: turns of the loop, counted beforehand, and a bar that shows them."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from types import TracebackType

from stepfuse.steptable import StepTable


def turns_needed(tables: Sequence[StepTable], max_rows: int) -> int:
    """Forwards that these samples take together under the first-come planner, each holding its peak rows to its end."""
    waiting = deque((len(table), 2 if table.passes > len(table) else 1) for table in tables)
    running: list[tuple[int, int]] = []  # (the turn it ends at, its rows)
    now = 0
    while waiting or running:
        while waiting and sum(rows for _, rows in running) + waiting[0][1] <= max_rows:
            length, rows = waiting.popleft()
            running.append((now + length, rows))
        if not running:  # a sample wider than a forward: the loop refuses it with its own message
            return now
        now = min(end for end, _ in running)
        running = [(end, rows) for end, rows in running if end > now]
    return now


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
