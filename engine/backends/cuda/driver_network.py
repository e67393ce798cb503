"""A network on a GPU that is not torch's: its rows in the driver's memory, and its captured forwards."""

from __future__ import annotations

import gc
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import numpy.typing as npt

from stepfuse._core import cuda
from stepfuse.backends.cuda.capture import WARM_UPS, CapturedForwards, not_captured, require_repeatable, undisturbed
from stepfuse.backends.cuda.memory import Rows, Staging, is_out_of_memory
from stepfuse.bundle.model_info import ModelInfo

Array = npt.NDArray[Any]

_STORAGE = ("float32", "float16")


class DriverNetwork(CapturedForwards):
    """Rows in memory of the CUDA driver's, which a library's forwards and the step share, and the captured forwards.

    A subclass has its library work on ``addresses``; its ``forward`` enqueues that on ``stream``.

    Args:
        context: Of the GPU.
        info: What the network is.
        max_rows: Most rows of a forward.
        stream: What all work is ordered on, which other networks may have too; None: a new one.
        storage: What it takes samples and gives predictions in, ``float32`` or ``float16``.
        cond_storage: What it takes each conditioning input in, where that is not the input's own dtype.

    Attributes:
        stream: What all work is ordered on.
        addresses: Device memory of ``sample``, ``timestep``, ``prediction`` and each conditioning input, ``max_rows``
            rows each.

    Raises:
        ValueError: If ``max_rows`` is below 1.
        TypeError: If the step has no kernel for the storage.
        CudaError: If there is no memory.
    """

    #: Texts of the library's errors that say that memory is exhausted, in lower case, where it has no codes.
    out_of_memory_texts: Sequence[str] = ()

    #: What a captured forward must be like, a sentence without its full stop.
    rule = "A captured forward must not wait for the device, copy from or to pageable memory, call the host or allocate"

    def __init__(
        self,
        context: cuda.Context,
        info: ModelInfo,
        max_rows: int,
        *,
        stream: cuda.Stream | None = None,
        storage: str = "float32",
        cond_storage: Mapping[str, str] | None = None,
    ) -> None:
        if max_rows < 1:
            raise ValueError(f"max_rows must be at least 1, got {max_rows}")
        if storage not in _STORAGE:
            raise TypeError(f"a network must take samples in {' or '.join(_STORAGE)}, got {storage}")
        self.context, self.stream = context, stream or cuda.Stream(context)
        self.info, self.max_rows, self.storage = info, max_rows, storage
        self.cond_storage = {name: (cond_storage or {}).get(name, spec.dtype) for name, spec in info.cond.items()}
        self.graphs: dict[int, cuda.Graph] = {}
        self._taken = 0  # bytes that the library keeps for forwards
        of_forward = {
            "sample": (info.shape, storage),
            "timestep": ((), info.timestep_dtype),
            "prediction": (info.shape, storage),
        }
        self._memory = {
            name: Rows.allocate(context, name, max_rows, shape, dtype) for name, (shape, dtype) in of_forward.items()
        }
        self._cond = {
            name: Rows.allocate(context, name, max_rows, spec.shape, self.cond_storage[name])
            for name, spec in info.cond.items()
        }
        self.addresses = {name: rows.buffer.address for name, rows in (self._memory | self._cond).items()}
        self._clear()

    def _clear(self) -> None:
        """Zero samples and null conditioning: a forward computes its padding too, which must be in bounds."""
        shape = self.max_rows, *self.info.shape
        copies = [
            (self._memory["sample"], np.zeros(shape, self.storage)),
            (self._memory["timestep"], np.zeros(self.max_rows, self.info.timestep_dtype)),
        ]
        for name, spec in self.info.cond.items():
            copies.append((self._cond[name], np.repeat(spec.value(name, None)[np.newaxis], self.max_rows, axis=0)))
        Staging(self.context, self.stream).put(copies)
        self.stream.synchronize()  # the copies are from memory that is freed now

    def ordered(self) -> AbstractContextManager[object]:
        """The turn on the stream, where other networks may work: the caller has none to be ordered with."""
        return cuda.Turn(self.stream)

    @abstractmethod
    def forward(self, rows: int) -> None:
        """Enqueues a forward of the first ``rows`` rows, without waiting for it.

        Raises:
            DenoiserError: If the library refuses.
        """

    def copy_of(self, states: cuda.DeviceBuffer, count: int) -> Array:
        """Waits for the first states and returns them, (count, *shape) float32."""
        copy = np.empty((count, *self.info.shape), np.float32)
        states.download(self.stream, copy)
        self.stream.synchronize()
        return copy

    def _warm_up(self, rows: int) -> int | None:
        before = self.context.memory[0]
        try:
            for _ in range(WARM_UPS):
                self.forward(rows)
            self.stream.synchronize()
        except Exception as error:
            if self._is_out_of_memory(error):
                return None
            raise
        need = before - self.context.memory[0]
        self._free_unused()
        self._taken += before - self.context.memory[0]
        return max(1, need)

    def _free_unused(self) -> None:
        """Has the library free what its forwards work in, if it can; captures take it again."""

    def _is_out_of_memory(self, error: BaseException) -> bool:
        """Whether an error of ``forward`` says that."""
        return is_out_of_memory(error, self.out_of_memory_texts)

    def _free_memory(self) -> int:
        gc.collect()
        return self.context.memory[0] + self._taken

    def _captures(self, rows: int) -> bool:
        with undisturbed():
            capture = cuda.Capture(self.stream)
            try:
                self.forward(rows)
                graph = capture.end()
            except Exception as error:
                if self._is_out_of_memory(error):
                    return False
                raise not_captured(rows, error, self.rule) from error
            finally:
                del capture  # an error keeps this frame, and with it the capture, which would keep the stream recording
        require_repeatable(rows, graph, self.rule)
        self.graphs[rows] = graph
        return True
