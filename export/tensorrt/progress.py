"""Progress bars of TensorRT's builds, fed by a progress monitor of the TensorRT at hand."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from stepfuse.display import NAME, printable


class BuildProgress:
    """Progress bars on standard error, one for each phase of a build; removed when it ends."""

    def __init__(self, title: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars

        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        self._bars = Bars(*columns, console=Console(stderr=True), transient=True)
        self._bars.add_task(_shown(title), total=None)
        self._tasks: dict[str, tuple[Any, int]] = {}

    def begin(self, phase: str, parent: str | None, steps: int) -> None:
        """A phase of ``steps`` steps begins, within the phase ``parent`` or none."""
        depth = self._tasks[parent][1] + 1 if parent in self._tasks else 1
        self._tasks[phase] = self._bars.add_task("  " * depth + _shown(phase), total=steps), depth

    def advance(self, phase: str, step: int) -> None:
        """A step, counted from 0, is done."""
        if phase in self._tasks:
            self._bars.update(self._tasks[phase][0], completed=step + 1)

    def end(self, phase: str) -> None:
        """A phase is done."""
        if phase in self._tasks:
            self._bars.remove_task(self._tasks.pop(phase)[0])

    def __enter__(self) -> BuildProgress:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()


def _shown(name: str) -> str:
    """A name in rich's markup: layers are named by the model's file."""
    from rich.markup import escape

    return escape(printable(name, NAME))


def monitor_for(trt: Any, progress: Any) -> Any:
    """An ``IProgressMonitor`` that forwards to ``progress``.

    No exception may pass through TensorRT: the first one, Ctrl-C included, is kept as ``error`` and cancels the build.
    """

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.error: BaseException | None = None

        def _forward(self, method: str, *arguments: Any) -> None:
            try:
                if self.error is None:
                    getattr(progress, method)(*arguments)
            except BaseException as error:
                self.error = error

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._forward("begin", phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._forward("advance", phase_name, step)
            return self.error is None

        def phase_finish(self, phase_name: str) -> None:
            self._forward("end", phase_name)

    return Monitor()
