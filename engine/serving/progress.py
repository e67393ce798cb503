"""How far a run is: a bar over the loop's turns."""

from __future__ import annotations


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

    def update(self, turn: int, total: int) -> None:
        """Shows that ``turn`` of ``total`` turns are done."""
        self._progress.update(self._task, completed=turn, total=total)

    def start(self) -> None:
        """Shows it."""
        self._progress.start()

    def stop(self) -> None:
        """Takes it away, if it is shown."""
        self._progress.stop()
