"""The fused step on torch tensors, as a scheduler of diffusers calls it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache, lru_cache
from importlib.util import find_spec
from typing import Any

import torch

from stepfuse import _core
from stepfuse.extras import pip_install
from stepfuse.integrations.diffusers.scheduler_rows import UnsupportedStep
from stepfuse.samplers.table import COLUMNS, Float32Array

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
    before: Sequence[torch.Tensor] = (),
    z: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One row on tensors that ``require_supported`` accepts.

    Args:
        row: A row that keeps a history, shape (16,) or (32,).
        x: State, any shape.
        prediction: Network output, like ``x``; its dtype may be another.
        before: What the last steps returned as kept, the latest first, as many as the row reads.
        z: Standard normal noise, for rows that add it.

    Returns:
        The next state, and what the row keeps, both new, contiguous, in the wider dtype of ``x`` and ``prediction``.
    """
    dtype = None if _steps_as_they_are((x, prediction, *before, *(() if z is None else (z,)))) else torch.float32
    takes_all = len(row) > len(COLUMNS) and x.device.type != "cpu"  # as the kernel of two lines does
    # New, since the caller may keep ``before``.
    registers = [_new(x, dtype) for _ in range(3 if takes_all else max(1, len(before)))]
    for register, one in zip(registers, before, strict=False):
        register.copy_(one.detach())
    following = step_with(row, x, prediction, registers, z)
    return following, registers[0].to(following.dtype)


def step_with(
    row: Float32Array,
    x: torch.Tensor,
    prediction: torch.Tensor,
    registers: Sequence[torch.Tensor],
    z: torch.Tensor | None = None,
) -> torch.Tensor:
    """One row with registers that it overwrites, as ``fused_step``.

    Args:
        row: Shape (16,) or (32,).
        x: State, any shape.
        prediction: Network output, like ``x``; its dtype may be another.
        registers: ``h``, ``h2`` and ``h3``, as many as the row uses, contiguous; float32 unless all tensors are alike.
        z: Standard normal noise, for rows that add it.

    Returns:
        The next state, new, contiguous, in the wider dtype of ``x`` and ``prediction``.
    """
    step = _on_cpu if x.device.type == "cpu" else _by_kernel
    if _steps_as_they_are((x, prediction, *registers, *(() if z is None else (z,)))):
        return step(row, x, prediction, registers, z)
    # Widened, and rounded once: the step needs one dtype, and numpy has no bfloat16.
    following = step(row, x.float(), prediction.float(), registers, None if z is None else z.float())
    return following.to(torch.promote_types(x.dtype, prediction.dtype))


def _steps_as_they_are(given: Sequence[torch.Tensor]) -> bool:
    dtype, on_cpu = given[0].dtype, given[0].device.type == "cpu"
    return all(one.dtype is dtype for one in given) and not (on_cpu and dtype is torch.bfloat16)


def _on_cpu(
    row: Float32Array,
    x: torch.Tensor,
    prediction: torch.Tensor,
    registers: Sequence[torch.Tensor],
    z: torch.Tensor | None,
) -> torch.Tensor:
    following, noise = _new(x), None if z is None else _array(z)
    h, h2, h3 = (*(one.numpy() for one in registers), None, None, None)[:3]
    _core.step(_array(x), _array(prediction), row, None, h, noise, following.numpy(), None, h2, h3)
    return following


def _by_kernel(
    row: Float32Array,
    x: torch.Tensor,
    prediction: torch.Tensor,
    registers: Sequence[torch.Tensor],
    z: torch.Tensor | None,
) -> torch.Tensor:
    from stepfuse.kernels import fused_step as kernel

    named = dict(zip(("h", "h2", "h3"), registers, strict=False))
    return kernel(x.detach(), prediction.detach(), _uploaded(row.tobytes(), x.device), **named, z=z)


def _new(like: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    return torch.empty_like(like, dtype=dtype, memory_format=torch.contiguous_format, requires_grad=False)


def _array(tensor: torch.Tensor) -> Any:
    """The tensor's memory as an array."""
    return (tensor.detach() if tensor.requires_grad else tensor).numpy()


@lru_cache(maxsize=4096)
def _uploaded(row: bytes, device: torch.device) -> torch.Tensor:
    values = torch.frombuffer(bytearray(row), dtype=torch.float32)
    # From pinned memory, which torch keeps until the copy is done: from any other the host would wait for the GPU.
    return (values.pin_memory() if device.type == "cuda" else values).to(device, non_blocking=True)
