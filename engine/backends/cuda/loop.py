"""An engine's back end on a GPU: requests join and leave between steps, all of which run on the device."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from stepfuse import _core
from stepfuse._core import cuda
from stepfuse.backends.base import row_bytes
from stepfuse.backends.cuda.capture import capture_as
from stepfuse.backends.cuda.config import Cuda
from stepfuse.backends.cuda.network import CapturedNetwork
from stepfuse.backends.cuda.program import Kernels, loop_program
from stepfuse.backends.device_samples import DeviceSamples
from stepfuse.bundle.model_info import ModelInfo


class LoopBackend:
    """A network on a GPU, whose forwards the loop enqueues, and a stepper that holds the samples there.

    Args:
        network: The network. Where it has no captured forwards its own are called, kernel by kernel.
        info: What the network is.
        kernels: The step's kernels.
        max_rows: Most rows of one forward.

    Raises:
        KernelError: If a kernel is missing.
        TypeError: If the network takes a conditioning input in a type that requests' values cannot be kept in.
    """

    rowwise = False
    adapters = None

    def __init__(self, network: CapturedNetwork[Any], info: ModelInfo, kernels: Kernels, max_rows: int) -> None:
        elements = math.prod(info.shape)
        self.stepper = cuda.device_stepper(
            network.stream,
            elements=elements,
            integer_timestep=info.timestep_dtype == "int64",
            max_rows=max_rows,
            sample=network.addresses["sample"],
            timestep=network.addresses["timestep"],
            prediction=network.addresses["prediction"],
            sample_bytes=elements * (4 if network.storage == "float32" else 2),
            cond=[
                (network.addresses[name], row_bytes(spec), _stored(name, spec.dtype, network.cond_storage[name]))
                for name, spec in info.cond.items()
            ],
            program=loop_program(kernels, network.storage, elements, max_rows),
            forwards=network.graphs,
        )
        self.device_samples = DeviceSamples(network.context, info.shape)
        self._network: CapturedNetwork[Any] | None = network
        self._stream = network.stream
        self.enqueue: Callable[..., None] | _core.Denoiser = (
            cuda.GraphDenoiser(network.stream, network.graphs) if network.graphs else self._enqueue
        )

    def forward(self, rows: int) -> None:
        """Runs the first ``rows`` rows and waits for them."""
        if isinstance(self.enqueue, _core.Denoiser):
            self.enqueue.forward(rows)
        else:
            self.enqueue(rows)
        self._stream.synchronize()

    def interrupt(self) -> None:
        """Forwards on a device are enqueued and end by themselves."""

    def close(self) -> None:
        """Frees the network once the device is idle: forwards of cancelled samples may still run."""
        with suppress(cuda.CudaError):
            self._stream.synchronize()
        self.device_samples.close()
        self._network = None
        del self.enqueue

    def _enqueue(self, rows: int) -> None:
        assert self._network is not None, "a closed engine runs nothing"
        with self._network.ordered():
            self._network.forward(rows)


def capture_forwards(
    info: ModelInfo, network: CapturedNetwork[Any], device: Cuda, max_rows: int, max_running: int
) -> int:
    """Captures the network's forwards as ``device`` says, and returns the most rows that memory suffices for.

    Memory for the states of ``max_running`` samples stays free.

    Raises:
        CaptureError: If they cannot be captured, and ``device.eager`` is False.
        ValueError: If a bucket is not between 1 and ``max_rows``.
    """
    capture_as(device, network, reserved_bytes=cuda.slot_bytes(max_running, math.prod(info.shape)))
    return min(max(network.graphs, default=max_rows), max_rows)


def _stored(name: str, given: str, kept: str) -> str:
    """How a value of dtype ``given`` is stored in dtype ``kept``, by the compiled core's names."""
    if given == kept:
        return "as_is"
    if given != "float32" or kept not in ("float16", "bfloat16"):
        raise TypeError(f"{name} is {given}, the network on the GPU must take that, float16 or bfloat16, got {kept}")
    return kept
