"""A run that does a step at a time, on the thread of the pipeline whose own loop asks for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from stepfuse import _core
from stepfuse.backends.base import Backend
from stepfuse.bundle.model_info import ModelInfo
from stepfuse.requests.resolution import Compiler, ResolvedRequest, resolve
from stepfuse.samplers.table import StepTable
from stepfuse.serving.config import Serving
from stepfuse.serving.in_flight import InFlightSample, Progress
from stepfuse.serving.service import Service

States = npt.NDArray[np.float32]


class CallersThread(Service):
    """A service that samples on the thread that asks: there holds what torch keeps a thread, such as autocast."""

    def __init__(self, info: ModelInfo, backend: Backend, rows: int) -> None:
        super().__init__(info, backend, Serving(max_rows=rows))
        self._compiler = Compiler(info)

    def requests(self, n: int, table: StepTable, **conditions: Any) -> list[ResolvedRequest]:
        """``n`` samples of a table; ``cond`` and ``negative_cond`` as in ``Engine.sample``, by name."""
        told: dict[str, Any] = {"cond": None, **{name: value or None for name, value in conditions.items()}}
        rest: dict[str, Any] = dict.fromkeys(("sampler", "steps", "guidance_scale", "eta"))
        return resolve(self._compiler, n, table=table, seed=0, options={}, **told, **rest)

    def _start(self) -> None:
        self._drive()


class Run:
    """Samples that rest after each step until the next is asked for.

    Args:
        service: Draws them; nobody else uses it meanwhile.
        requests: One a sample.
        x: Shape (n, *shape), what they begin as.

    Attributes:
        x: The states, which may be changed between two steps.
    """

    def __init__(self, service: CallersThread, requests: Sequence[ResolvedRequest], x: States) -> None:
        self.x = x
        self._service = service
        self._requests = requests
        self._gate = _core.Gate()
        self._ids: list[int] = []
        self._stepped = 0
        self._error: BaseException | None = None

    def step(self) -> None:
        """Does a step of every sample.

        Raises:
            BaseException: What the network has failed with.
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
        """Ends the run wherever it is."""
        self._service.cancel(self._ids)

    def on_progress(self, made: Sequence[Progress]) -> None:
        """Counts the steps, and keeps the first error."""
        self._stepped += sum(not one.ended for one in made)
        self._error = self._error or next((one.error for one in made if one.error is not None), None)
