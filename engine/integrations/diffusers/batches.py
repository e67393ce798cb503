"""The states of a compiled call, which step together: where they lie, and what steps them there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from stepfuse.integrations.diffusers.network_inputs import NetworkInputs
from stepfuse.integrations.diffusers.stepwise import InlineService, StepwiseBatch
from stepfuse.integrations.scheduler_config import SchedulerSettings
from stepfuse.samplers.table import Float32Array, StepTable

#: Gives a step's noise, like the states, or None where the step draws none. To be called after the network.
Draw: TypeAlias = Callable[[], "torch.Tensor | None"]

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Start:
    """What a batch begins with.

    Attributes:
        module: The pipeline's network.
        inputs: The inputs that the pipeline has called it with.
        chunks: How many times the sample's channels its output has; the first are the prediction.
        settings: Of the scheduler.
        table: The steps, without their noise.
        noise_scales: The weight of each step's noise, shape (S,).
        states: Shape (n, *shape), where the pipeline has them.
        cond: Of each state, the row of ``inputs`` with its conditioning.
        uncond: Likewise, without; None: the steps are not guided.
    """

    module: Any
    inputs: NetworkInputs
    chunks: int
    settings: SchedulerSettings
    table: StepTable
    noise_scales: Float32Array
    states: torch.Tensor
    cond: Rows
    uncond: Rows | None


class Batch(Protocol):
    """States that step together, in float32 whatever the network's precision."""

    def put(self, states: torch.Tensor) -> None:
        """Replaces the states."""

    def step(self, draw: Draw) -> torch.Tensor:
        """Does one step of every sample.

        Returns:
            The states, float32, on the device of those that the batch began with. They are the caller's to keep; what
            the caller changes in them is to be ``put``.

        Raises:
            DenoiserError: If a state is not finite, where they lie in the host's memory.
            BaseException: If the network fails, its exception.
        """

    def stop(self) -> None:
        """Ends the batch at whatever step it is."""

    def check(self) -> None:
        """Raises DenoiserError if a state has been not finite; to be called after the last step."""


class HostBatch:
    """States in the host's memory, stepped by the engine's loop.

    Args:
        start: What it begins with.
        service: Runs the samples.
        conditioning: Of the requests: ``cond`` and, with guidance, ``negative_cond``.
    """

    def __init__(self, start: Start, service: InlineService, conditioning: dict[str, Any]) -> None:
        requests = service.requests(len(start.states), start.table, **conditioning)
        self._batch = StepwiseBatch(service, requests, as_numpy(start.states).copy())
        self._device = start.states.device
        self._noise_scales = iter(start.noise_scales)

    def put(self, states: torch.Tensor) -> None:
        """As in ``Batch``."""
        self._batch.x[...] = as_numpy(states)

    def step(self, draw: Draw) -> torch.Tensor:
        """As in ``Batch``."""
        self._batch.step()
        scale, noise = next(self._noise_scales), draw()
        if noise is not None:
            self._batch.x += scale * as_numpy(noise)
        return torch.from_numpy(self._batch.x.copy()).to(self._device)

    def stop(self) -> None:
        """As in ``Batch``."""
        self._batch.stop()

    def check(self) -> None:
        """Does nothing: a step has raised."""


def as_numpy(states: torch.Tensor) -> Float32Array:
    """States as an array in the host's memory."""
    values: Float32Array = states.detach().float().cpu().contiguous().numpy()
    return values
