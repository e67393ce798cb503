"""Device memory of a static batch's samples, and the copies that a batch begins with."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from stepfuse._core import cuda
from stepfuse.backends.cuda.memory import Rows, Staging, Words
from stepfuse.backends.cuda.network import CapturedNetwork
from stepfuse.backends.cuda.static_batch import StaticBatch
from stepfuse.bundle.model_info import ModelInfo


class BatchMemory:
    """States, histories, seeds and known regions of up to ``network.max_rows`` samples, beside the network's rows.

    Args:
        network: Where the rows of a forward are.
        info: What it is.

    Raises:
        CudaError: If there is no memory.
    """

    def __init__(self, network: CapturedNetwork[Any], info: ModelInfo) -> None:
        context, stream, count = network.context, network.stream, network.max_rows
        self._network = network  # the owner of the rows that batches are copied to
        self._elements = math.prod(info.shape)
        self._slots = cuda.SlotMemory(stream, self._elements, info.timestep_dtype == "int64", count)
        self._x = Rows("x", "float32", self._slots.x)
        self._seed = Rows("seed", "int64", self._slots.seed)
        of_forward = {"sample": (info.shape, network.storage), "timestep": ((), info.timestep_dtype)}
        self._forward = {
            name: Rows.at(context, network.addresses[name], name, count, shape, dtype)
            for name, (shape, dtype) in of_forward.items()
        }
        self._cond = {
            name: Rows.at(context, network.addresses[name], name, count, spec.shape, network.cond_storage[name])
            for name, spec in info.cond.items()
        }
        self._staging, self._words = Staging(context, stream), Words(context, stream)
        self._staging.put([(Rows("h", "float32", self._slots.h), np.zeros((count, self._elements), np.float32))])

    @property
    def states(self) -> cuda.DeviceBuffer:
        """States of the samples, (max_rows, *shape) float32."""
        return self._slots.x

    def begin(self, batch: StaticBatch) -> None:
        """Copies a batch to the first slots and rows; ``arguments`` has reserved what its known regions take.

        Raises:
            ValueError: If a number does not fit the network's storage.
        """
        copies = [(self._x, batch.x), (self._seed, batch.seed)]
        copies += [(self._forward["sample"], batch.sample), (self._forward["timestep"], batch.timestep)]
        copies += [(self._cond[name], values) for name, values in batch.cond.items()]
        if batch.known is not None:
            copies.append((Rows("known", "float32", self._slots.known), batch.known))
        self._staging.put(copies)

    def arguments(self, program: cuda.StepProgram, needs: cuda.StepNeeds) -> cuda.StepArguments:
        """The arguments of a step's kernels but those in its frame.

        Memory that only some steps need is kept from its first use on.

        Raises:
            CudaError: If there is no memory.
        """
        if scratch := program.scratch_bytes(self._network.max_rows, self._elements, needs):
            self._slots.reserve_scratch(scratch)
        if needs.keep:
            self._slots.reserve_known()
        if needs.second:
            self._slots.reserve_registers(3)
        addresses = self._network.addresses
        return self._slots.arguments(
            sample=addresses["sample"],
            timestep=addresses["timestep"],
            prediction=addresses["prediction"],
        )

    def upload_frames(self, words: npt.NDArray[np.uint32]) -> int:
        """Copies frames to memory that holds them until the next call; returns its address."""
        return self._words.put(words)
