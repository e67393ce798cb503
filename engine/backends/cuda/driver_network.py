"""A network that is not torch's on a GPU: its memory, what is copied to it, and its captured forwards."""

from __future__ import annotations

import gc
import math
from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt

from stepfuse._core import cuda
from stepfuse.backends.cuda.capture import WARM_UPS, CapturedForwards, not_captured
from stepfuse.backends.cuda.memory import Rows, Staging, Words
from stepfuse.backends.cuda.static_batch import Batch, step_values
from stepfuse.bundle.model_info import ModelInfo

Array = npt.NDArray[Any]

_STORAGE = ("float32", "float16")


class DriverNetwork(CapturedForwards):
    """Memory of the CUDA driver's, which a library's forwards and the step share, and the captured forwards.

    A subclass has its library work on ``addresses``, put on ``stream`` by ``forward``.

    Args:
        context: Of the GPU.
        info: What the network is.
        max_rows: Most rows of a forward.
        storage: What it takes samples and gives predictions in, ``float32`` or ``float16``.
        cond_storage: What it takes each conditioning input in, where that is not the input's own dtype.

    Attributes:
        stream: What all work is put on.
        addresses: Device memory of ``sample``, ``timestep``, ``prediction`` and each conditioning input, ``max_rows``
            rows each.

    Raises:
        ValueError: If ``max_rows`` is below 1.
        TypeError: If the step has no kernel for the storage.
        CudaError: If there is no memory.
    """

    #: What a captured forward must be like, a sentence without its full stop.
    rule = "A captured forward must not wait for the device, copy from or to pageable memory, call the host or allocate"

    def __init__(
        self,
        context: cuda.Context,
        info: ModelInfo,
        max_rows: int,
        *,
        storage: str = "float32",
        cond_storage: Mapping[str, str] | None = None,
    ) -> None:
        if max_rows < 1:
            raise ValueError(f"max_rows must be at least 1, got {max_rows}")
        if storage not in _STORAGE:
            raise TypeError(f"a network must take samples in {' or '.join(_STORAGE)}, got {storage}")
        self.context, self.stream = context, cuda.Stream(context)
        self.info, self.max_rows, self.storage = info, max_rows, storage
        self.cond_storage = {name: (cond_storage or {}).get(name, spec.dtype) for name, spec in info.cond.items()}
        self.graphs: dict[int, cuda.Graph] = {}
        self._taken = 0  # by the library, for forwards
        self._memory = {
            name: Rows(context, name, max_rows, shape, dtype)
            for name, shape, dtype in (
                ("x", info.shape, "float32"),
                ("h", info.shape, "float32"),
                ("seed", (), "int64"),
                ("sample", info.shape, storage),
                ("timestep", (), info.timestep_dtype),
                ("prediction", info.shape, storage),
            )
        }
        self._cond = {
            name: Rows(context, name, max_rows, spec.shape, self.cond_storage[name]) for name, spec in info.cond.items()
        }
        at = {name: rows.address for name, rows in self._memory.items()}
        self.values = step_values(at, max_rows, math.prod(info.shape), whole=info.timestep_dtype == "int64")
        self.addresses = {name: at[name] for name in ("sample", "timestep", "prediction")}
        self.addresses |= {name: rows.address for name, rows in self._cond.items()}
        self._extra: dict[str, Rows] = {}
        self._staging, self._words = Staging(context, self.stream), Words(context, self.stream)
        self._clear()

    def _clear(self) -> None:
        """A forward computes its padding too, which must be in bounds: null, and zero."""
        blank = [self._memory[name] for name in ("h", "sample", "timestep")]
        copies = [(rows, np.zeros((self.max_rows, *rows.shape), rows.dtype)) for rows in blank]
        for name, spec in self.info.cond.items():
            copies.append((self._cond[name], np.repeat(spec.value(name, None)[np.newaxis], self.max_rows, axis=0)))
        self._staging.put(copies)

    def ordered(self) -> AbstractContextManager[object]:
        """The caller has no stream: nothing to be put in order."""
        return nullcontext()

    def begin(self, batch: Batch) -> None:
        """Copies a batch to the first rows of the memory."""
        copies = [(self._memory[name], getattr(batch, name)) for name in ("x", "seed", "sample", "timestep")]
        copies += [(self._cond[name], values) for name, values in batch.cond.items()]
        if batch.known is not None:
            copies.append((self._extra["known"], batch.known))
        self._staging.put(copies)

    def extra(self, name: str, size: int) -> int:
        """Memory of ``size`` bytes that some batches take beside, kept from its first use on; returns its address."""
        if name not in self._extra:
            self._extra[name] = Rows(self.context, name, size // np.dtype("float32").itemsize, (), "float32")
        return self._extra[name].address

    def upload(self, words: Array) -> int:
        """Copies words to memory that holds them until the next call; returns its address."""
        return self._words.put(words)

    @abstractmethod
    def forward(self, rows: int) -> None:
        """Puts the first ``rows`` rows on the stream, without waiting for them.

        Raises:
            DenoiserError: If the library cannot.
        """

    def result(self, slots: int) -> Array:
        """Waits for the first states and returns them, (slots, *shape) float32."""
        states = np.empty((slots, *self.info.shape), np.float32)
        self._memory["x"].buffer.download(self.stream, states)
        self.stream.synchronize()
        return states

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
        self._give_back()
        self._taken += before - self.context.memory[0]
        return max(1, need)

    def _give_back(self) -> None:
        """Has the library free what its forwards have taken, if it can; captures take it again."""

    def _is_out_of_memory(self, error: BaseException) -> bool:
        """Whether that is what an error of ``forward`` says."""
        return isinstance(error, cuda.CudaError) and error.out_of_memory

    def _free_memory(self) -> int:
        gc.collect()
        return self.context.memory[0] + self._taken

    def _captures(self, rows: int) -> bool:
        capture = cuda.Capture(self.stream)
        try:
            self.forward(rows)
            graph = capture.end()
        except Exception as error:
            if self._is_out_of_memory(error):
                return False
            raise not_captured(rows, error, self.rule) from error
        finally:
            del capture  # an error keeps this frame: without this it would keep the stream recording
        if found := Counter(graph.unrepeatable()):
            parts = ", ".join(f"{part} ({count})" for part, count in sorted(found.items()))
            raise not_captured(rows, f"it holds what a replay cannot repeat: {parts}", self.rule)
        self.graphs[rows] = graph
        return True
