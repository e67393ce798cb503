"""Any Python function as a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from stepfuse.backends.host.base import HostBackend
from stepfuse.bundle.model_info import ModelInfo
from stepfuse.errors import DenoiserError

Array = npt.NDArray[Any]
DenoiserFunction = Callable[[Array, Array, Mapping[str, Array]], Any]


class CallableBackend(HostBackend):
    """Calls ``fn(sample (R, *shape), timestep (R,), {name: (R, ...)}) -> (R, *shape)``.

    The function is handed copies: it may keep or change what it gets.
    """

    def __init__(self, fn: DenoiserFunction, info: ModelInfo, max_rows: int) -> None:
        super().__init__(info, max_rows)
        self._fn = fn

    def forward(self, rows: int) -> None:
        """Runs the first ``rows`` rows.

        Raises:
            DenoiserError: If what comes back has another shape, or no real numbers.
        """
        b = self.buffers
        cond = {name: values[:rows].copy() for name, values in b.cond.items()}
        prediction = np.asarray(self._fn(b.sample[:rows].copy(), b.timestep[:rows].copy(), cond))
        target = b.prediction[:rows]
        if prediction.shape != target.shape:
            raise DenoiserError(f"the denoiser must return shape {target.shape}, got {prediction.shape}")
        if prediction.dtype.kind not in "fiu":
            raise DenoiserError(f"the denoiser must return real numbers, got dtype {prediction.dtype}")
        target[...] = prediction
