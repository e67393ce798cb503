"""The loop's shared memory as arrays, a row a sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from stepfuse import _core
from stepfuse.bundle.model_info import ModelInfo

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Buffers:
    """Views, not copies: a back end reads its inputs here and writes its prediction here.

    Attributes:
        sample: (max_rows, *shape) float32.
        timestep: (max_rows,) float32 or int64.
        cond: (max_rows, *input shape) by input name.
        prediction: (max_rows, *shape) float32.
    """

    sample: Array
    timestep: Array
    cond: dict[str, Array]
    prediction: Array

    @classmethod
    def of(cls, server: _core.Server, info: ModelInfo) -> Buffers:
        """The buffers of ``server`` in the shapes of ``info``."""
        views = server.buffers()
        sample = views["sample"]
        rows = len(sample)
        cond = {
            name: memory.view(spec.dtype).reshape(rows, *spec.shape)
            for (name, spec), memory in zip(info.cond.items(), views["cond"], strict=True)
        }
        return cls(
            sample=sample.reshape(rows, *info.shape),
            timestep=views["timestep"].reshape(rows),
            cond=cond,
            prediction=views["prediction"].reshape(rows, *info.shape),
        )
