"""A static batch that is stepped on request, on the calling thread: the thread of a pipeline's own loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stepfuse import _core
from stepfuse.backends.base import Backend
from stepfuse.bundle.model_info import ModelInfo
from stepfuse.requests.resolution import Compiler, ResolvedRequest, resolve
from stepfuse.samplers.table import Float32Array, StepTable
from stepfuse.serving.config import Serving
from stepfuse.serving.in_flight import InFlightSample, Progress
from stepfuse.serving.service import Service


class InlineService(Service):
    """A service whose loop runs on the calling thread, so that torch's settings of that thread, as autocast, apply.

    Args:
        info: What the network is.
        backend: The network, and the stepper that its loop takes.
        rows: Most rows of one forward.
    """

    inline = True

    def __init__(self, info: ModelInfo, backend: Backend, rows: int) -> None:
        super().__init__(info, backend, Serving(max_rows=rows))
        self._compiler = Compiler(info)

    def requests(self, n: int, table: StepTable, **conditioning: Any) -> list[ResolvedRequest]:
        """``n`` samples of a table; ``cond`` and ``negative_cond`` are dicts by name, as in ``Engine.sample``."""
        given: dict[str, Any] = {"cond": None, **{name: value or None for name, value in conditioning.items()}}
        rest: dict[str, Any] = dict.fromkeys(("sampler", "steps", "guidance_scale", "eta"))
        return resolve(self._compiler, n, table=table, seed=0, options={}, **given, **rest)


class StepwiseBatch:
    """A result handle of samples that rest after each step until the next one is requested.

    Args:
        service: Runs the samples; no other thread may use it meanwhile.
        requests: One a sample.
        x: Shape (n, *shape), the states to begin with.

    Attributes:
        x: The states, which may be changed between two steps.
    """

    def __init__(self, service: InlineService, requests: Sequence[ResolvedRequest], x: Float32Array) -> None:
        self.x = x
        self._service = service
        self._requests = requests
        self._gate = _core.Gate()
        self._ids: list[int] = []
        self._stepped = 0
        self._error: BaseException | None = None

    def step(self) -> None:
        """Does one step of every sample.

        Raises:
            BaseException: If the network fails, its exception.
        """
        self._stepped = 0
        if self._ids:
            self._service.open(self._gate)
        else:
            samples = [
                InFlightSample(
                    self._service.new_id(), request, self.x[i], True, self, gate=self._gate, watched=True, index=i
                )
                for i, request in enumerate(self._requests)
            ]
            self._ids = [sample.id for sample in samples]
            self._service.submit_all(samples)
        if self._error is not None:
            raise self._error
        if self._stepped != len(self.x):
            raise RuntimeError(f"all {len(self.x)} samples must step together, got {self._stepped}")

    def stop(self) -> None:
        """Cancels the samples at whatever step they are."""
        self._service.cancel(self._ids)

    def on_progress(self, made: Sequence[Progress]) -> None:
        """Counts the steps, and keeps the first error."""
        self._stepped += sum(not one.ended for one in made)
        self._error = self._error or next((one.error for one in made if one.error is not None), None)
