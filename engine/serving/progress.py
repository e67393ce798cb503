"""How far a run is: a bar over the loop's turns, or a line now and then where there is no terminal."""

from __future__ import annotations

import sys
import time

from stepfuse.display import NAME, printable

_BETWEEN = 10.0  # seconds between two lines


class ProgressBar:
    """Progress over ``total`` turns, or what ``unit`` says, on standard error: a bar that is gone when the run is.

    In a log a bar would be noise: there, a run that takes longer than ten seconds says every ten how far it is.

    Args:
        total: Turns of the whole run.
        what: What runs.
        unit: What is counted.
    """

    def __init__(self, total: int, what: str, *, unit: str = "steps") -> None:
        self._bar, self._what, self._unit = None, printable(what, NAME), unit
        self._began = self._last = time.monotonic()
        if not _may_draw():
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        drawn = console.is_interactive and console.file.isatty()  # FORCE_COLOR asks for colours, not for a bar in a log
        if drawn or console.is_jupyter:
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn(unit),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=console, transient=True)
            self._task = self._bar.add_task(self._what, total=total)

    def update(self, turn: int, total: int) -> None:
        """Shows that ``turn`` of ``total`` turns are done."""
        if self._bar is not None:
            self._bar.update(self._task, completed=turn, total=total)
        elif (now := time.monotonic()) - self._last >= _BETWEEN:
            self._last = now
            left = (now - self._began) * (total - turn) / max(turn, 1)
            line = f"{self._what}: {turn} of {total} {self._unit}, about {left:.0f} s left"
            print(line, file=sys.stderr, flush=True)

    def start(self) -> None:
        """Shows it."""
        self._began = self._last = time.monotonic()
        if self._bar is not None:
            self._bar.start()

    def stop(self) -> None:
        """Takes it away, if it is shown."""
        if self._bar is not None:
            self._bar.stop()


def _may_draw() -> bool:
    """Whether rich might draw a bar: its modules take a tenth of a cold start, and a log needs none of them."""
    return "IPython" in sys.modules or (sys.stderr is not None and sys.stderr.isatty())
