"""The fused step on torch tensors, as a scheduler of diffusers calls it."""

from __future__ import annotations

import logging
from functools import cache, lru_cache
from importlib.util import find_spec
from typing import Any

import torch

from stepfuse import _core
from stepfuse.extras import pip_install
from stepfuse.integrations.diffusers.scheduler_rows import UnsupportedStep
from stepfuse.samplers.table import Float32Array

logger = logging.getLogger(__name__)

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def require_supported(x: torch.Tensor, prediction: torch.Tensor) -> None:
    """Raises ``UnsupportedStep`` if these tensors cannot be stepped here."""
    for tensor in (x, prediction):
        if tensor.dtype not in DTYPES:
            raise UnsupportedStep(f"tensors are {tensor.dtype}, not float32, float16 or bfloat16")
    if x.shape != prediction.shape:
        raise UnsupportedStep(f"sample has shape {tuple(x.shape)}, model_output {tuple(prediction.shape)}")
    if x.device != prediction.device:
        raise UnsupportedStep(f"sample is on {x.device}, model_output on {prediction.device}")
    if (x.requires_grad or prediction.requires_grad) and torch.is_grad_enabled():
        raise UnsupportedStep("a gradient is asked for (torch.no_grad() is not in force)")
    if x.device.type != "cpu":
        _require_kernel(x.device.type)


@cache
def _require_kernel(device_type: str) -> None:
    if device_type != "cuda":
        raise UnsupportedStep(f"tensors are on {device_type}, not on the CPU or a CUDA device")
    if find_spec("triton") is None:
        raise UnsupportedStep(f"CUDA tensors need triton: {pip_install('kernels')}")


@cache
def warn_once(scheduler: str, reason: str) -> None:
    """Logs a warning that a scheduler steps by diffusers' own code, once for each reason."""
    logger.warning("%s steps by diffusers' own code: %s", scheduler, reason)


def fused_step(
    row: Float32Array,
    x: torch.Tensor,
    prediction: torch.Tensor,
    before: torch.Tensor | None = None,
    z: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One row on tensors that ``require_supported`` accepts.

    Args:
        row: A row that keeps a history, shape (16,).
        x: State, any shape.
        prediction: Network output, like ``x``; its dtype may be another.
        before: What the last step returned as kept, for rows that read a history.
        z: Standard normal noise, for rows that add it.

    Returns:
        The next state, and what the row keeps, both new, contiguous, in the wider dtype of ``x`` and ``prediction``.
    """
    dtype, on_cpu = x.dtype, x.device.type == "cpu"
    step = _on_cpu if on_cpu else _by_kernel
    alike = all(other is None or other.dtype is dtype for other in (prediction, before, z))
    if alike and not (on_cpu and dtype is torch.bfloat16):
        return step(row, x, prediction, before, z)
    # Widened, and rounded once: the step needs one dtype, and numpy has no bfloat16.
    following, kept = step(row, x.float(), prediction.float(), _float(before), _float(z))
    dtype = torch.promote_types(dtype, prediction.dtype)
    return following.to(dtype), kept.to(dtype)


def _float(tensor: torch.Tensor | None) -> torch.Tensor | None:
    return None if tensor is None else tensor.float()


def _on_cpu(
    row: Float32Array,
    x: torch.Tensor,
    prediction: torch.Tensor,
    before: torch.Tensor | None,
    z: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    following, kept = _new(x), _register(x, before)
    noise = None if z is None else _array(z)
    _core.step(_array(x), _array(prediction), row, None, kept.numpy(), noise, following.numpy(), None)
    return following, kept


def _by_kernel(
    row: Float32Array,
    x: torch.Tensor,
    prediction: torch.Tensor,
    before: torch.Tensor | None,
    z: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    from stepfuse.kernels import fused_step as kernel

    kept = _register(x, before)
    return kernel(x.detach(), prediction.detach(), _uploaded(row.tobytes(), x.device), h=kept, z=z), kept


def _register(x: torch.Tensor, before: torch.Tensor | None) -> torch.Tensor:
    """A history register for the step to overwrite: new, since the caller may keep ``before``."""
    if before is None:
        return _new(x)
    return before.detach().clone(memory_format=torch.contiguous_format)


def _new(like: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(like, memory_format=torch.contiguous_format, requires_grad=False)


def _array(tensor: torch.Tensor) -> Any:
    """The tensor's memory as an array."""
    return (tensor.detach() if tensor.requires_grad else tensor).numpy()


@lru_cache(maxsize=4096)
def _uploaded(row: bytes, device: torch.device) -> torch.Tensor:
    return torch.frombuffer(bytearray(row), dtype=torch.float32).to(device)
