"""An engine's loop on a GPU: requests join and leave between steps, which all happen on the device."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Protocol

from stepfuse import _core
from stepfuse._core import cuda
from stepfuse.backends.base import row_bytes
from stepfuse.backends.cuda.config import Cuda
from stepfuse.backends.cuda.kernels import StepKernels
from stepfuse.backends.cuda.program import beside_step
from stepfuse.bundle.model_info import ModelInfo


class Network(Protocol):
    """What the loop asks of a network on a GPU; ``stepfuse.backends.cuda`` says what each is."""

    context: cuda.Context
    stream: cuda.Stream
    graphs: dict[int, cuda.Graph]
    max_rows: int
    storage: str
    addresses: dict[str, int]
    cond_storage: dict[str, str]

    def ordered(self) -> AbstractContextManager[object]:
        """Behind what the caller's stream has, and before what it gets next."""

    def forward(self, rows: int) -> None:
        """Puts the first ``rows`` rows on the stream."""

    def capture(
        self, buckets: Sequence[int], memory_bytes: int | None = None, *, optional: bool = False, beside_bytes: int = 0
    ) -> None:
        """Captures a forward for each number of rows."""


class LoopBackend:
    """A network on a GPU, whose forwards the loop puts on a stream, and a stepper that holds the samples there.

    Args:
        network: The network. Where it has no captured forwards its own are called, kernel by kernel.
        info: What the network is.
        kernels: The step's kernels.
        max_rows: Most rows of one forward.

    Raises:
        KernelError: If a kernel is missing.
        TypeError: If the network takes a conditioning input in a type that requests' values cannot be kept in.
    """

    def __init__(self, network: Network, info: ModelInfo, kernels: StepKernels, max_rows: int) -> None:
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
            program=step_program(kernels, network.storage, elements, max_rows),
        )
        self._network: Network | None = network
        self._stream = network.stream
        self.enqueue: Callable[[int], None] | _core.Denoiser = (
            cuda.GraphDenoiser(network.stream, network.graphs) if network.graphs else self._enqueue
        )

    def forward(self, rows: int) -> None:
        """Runs the first ``rows`` rows and waits for them."""
        if isinstance(self.enqueue, _core.Denoiser):
            self.enqueue.forward(rows)
        else:
            self.enqueue(rows)
        self._stream.synchronize()

    def close(self) -> None:
        """Lets the network go, when the device is through with it: of samples withdrawn it may still be at work."""
        with suppress(cuda.CudaError):
            self._stream.synchronize()
        self._network = None
        del self.enqueue

    def _enqueue(self, rows: int) -> None:
        assert self._network is not None, "a closed engine runs nothing"
        with self._network.ordered():
            self._network.forward(rows)


def step_program(kernels: StepKernels, storage: str, n: int, slots: int) -> cuda.StepProgram:
    """All kernels that steps of up to ``slots`` samples of ``n`` elements may need: no request waits for a compiler.

    Args:
        kernels: Where they are from.
        storage: What the network computes in.
        n: Elements of a sample.
        slots: Samples that step together; more run in what is best for so many.

    Raises:
        KernelError: If one is missing.
    """
    counts = [1 << i for i in range((slots - 1).bit_length() + 1)]
    needs = cuda.StepNeeds(rescale=True, threshold=True, keep=True)
    return cuda.StepProgram(
        {count: kernels.get(count, n, noise=False) for count in counts},
        {count: kernels.get(count, n, noise=True) for count in counts},
        **beside_step(kernels, storage, n, needs),
    )


def capture_forwards(info: ModelInfo, network: Network, device: Cuda, max_rows: int, max_running: int) -> int:
    """Captures the network's forwards as ``device`` says, and returns the most rows that memory suffices for.

    Room stays for the states of ``max_running`` samples.

    Raises:
        CaptureError: If they cannot be captured, and ``device.eager`` is False.
        ValueError: If a bucket is out of bounds.
    """
    if device.eager is not True:
        buckets = device.buckets or cuda.bucket_rows(max_rows)
        states = cuda.slot_bytes(max_running, math.prod(info.shape))
        network.capture(buckets, device.memory_bytes, optional=device.eager is None, beside_bytes=states)
    return min(max(network.graphs, default=max_rows), max_rows)


def kernels_for(network: Network, cubins: str | os.PathLike[str] | None) -> StepKernels:
    """The step's kernels for a network."""
    return StepKernels(network.context, network.storage, None if cubins is None else Path(cubins))


def _stored(name: str, given: str, kept: str) -> str:
    """How a value of ``given`` dtype is kept in ``kept``, in the compiled core's words."""
    if given == kept:
        return "as_is"
    if given != "float32" or kept not in ("float16", "bfloat16"):
        raise TypeError(f"{name} is {given}, the network on the GPU must take that, float16 or bfloat16, got {kept}")
    return kept
