"""A torch module on the CPU as a network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from stepfuse.backends.host.callable import DenoiserFunction
from stepfuse.backends.host.interface import SAMPLE
from stepfuse.bundle.model_info import GUIDANCE_INPUT, ModelInfo

Array = npt.NDArray[Any]


def module_on_cpu(module: Any, info: ModelInfo) -> DenoiserFunction:
    """The module as a function of arrays, without gradients.

    Args:
        module: ``module(sample (R, *shape), timestep (R,), **cond)`` to the prediction, or a tuple of which that is the
            first. Floating-point inputs but the timestep and the guidance scale have the dtype of its parameters.
        info: What it is.

    Raises:
        ValueError: If a parameter is not on the CPU.
    """
    parameters = list(module.parameters())
    elsewhere = {str(one.device) for one in parameters if one.device.type != "cpu"}
    if elsewhere:
        raise ValueError(f"the module must be on the CPU for device='cpu', got {', '.join(sorted(elsewhere))}")
    dtype = next((one.dtype for one in parameters if one.is_floating_point()), torch.float32)

    def as_computed(name: str, values: Array) -> torch.Tensor:
        tensor = torch.from_numpy(values)
        return tensor.to(dtype) if tensor.is_floating_point() and name != GUIDANCE_INPUT else tensor

    def predict(sample: Array, timestep: Array, cond: Mapping[str, Array]) -> Array:
        with torch.no_grad():
            found = module(
                as_computed(SAMPLE, sample),
                torch.from_numpy(timestep),
                **{name: as_computed(name, values) for name, values in cond.items()},
            )
        prediction = found[0] if isinstance(found, tuple) else found
        return np.asarray(prediction.float().numpy())

    return predict
