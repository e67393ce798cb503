"""A torch module on the CPU as a network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from stepfuse.backends.host.callable import DenoiserFunction
from stepfuse.bundle.model_info import ModelInfo

Array = npt.NDArray[Any]


def module_on_cpu(module: Any, info: ModelInfo) -> DenoiserFunction:
    """The module as a function of arrays, without gradients.

    Args:
        module: ``module(sample (R, *shape), timestep (R,), **cond)`` to the prediction, or a tuple of which that is the
            first. Floating-point inputs but the timestep have the dtype of its parameters.
        info: What it is.

    Raises:
        ValueError: If a parameter is not on the CPU.
    """
    parameters = list(module.parameters())
    elsewhere = {str(one.device) for one in parameters if one.device.type != "cpu"}
    if elsewhere:
        raise ValueError(f"the module must be on the CPU for device='cpu', got {', '.join(sorted(elsewhere))}")
    dtype = next((one.dtype for one in parameters if one.is_floating_point()), torch.float32)

    def converted(values: Array) -> torch.Tensor:
        tensor = torch.from_numpy(values)
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    def predict(sample: Array, timestep: Array, cond: Mapping[str, Array]) -> Array:
        with torch.no_grad():
            found = module(
                converted(sample),
                torch.from_numpy(timestep),
                **{name: converted(values) for name, values in cond.items()},
            )
        prediction = found[0] if isinstance(found, tuple) else found
        return np.asarray(prediction.float().numpy())

    return predict
