"""Checks of the kernels' tensor arguments. None of them synchronizes with the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton

from stepfuse.kernels.columns import COLUMNS, SECOND_LINE

STORAGE = (torch.float32, torch.float16, torch.bfloat16)


def require(holds: bool, message: str) -> None:
    """Raises ValueError with ``message`` unless ``holds``."""
    if not holds:
        raise ValueError(message)


def require_state(name: str, tensor: torch.Tensor) -> None:
    """Raises unless a tensor has a storage dtype, a first dimension, and a device that a kernel can run on."""
    if tensor.dtype not in STORAGE:
        raise TypeError(f"{name} must be float32, float16 or bfloat16, got {_plain(tensor.dtype)}")
    require(tensor.ndim > 0, f"{name} must have a first dimension of samples, got shape ()")
    device = tensor.device.type
    require(
        device == "cuda" or (device == "cpu" and triton.knobs.runtime.interpret),
        f"{name} must be a CUDA tensor, got one on {tensor.device}"
        + (" (TRITON_INTERPRET=1 runs the kernels on the CPU, slowly)" if device == "cpu" else ""),
    )


def require_like(
    name: str, tensor: torch.Tensor, x: torch.Tensor, shape: Sequence[int], *dtypes: torch.dtype
) -> torch.Tensor:
    """Raises unless a tensor has this shape, one of these dtypes, and the device of ``x``; returns it."""
    if tensor.dtype not in dtypes:
        names = " or ".join(_plain(dtype) for dtype in dtypes)
        raise TypeError(f"{name} must be {names}, got {_plain(tensor.dtype)}")
    require(tensor.shape == tuple(shape), f"{name} must have shape {tuple(shape)}, got {tuple(tensor.shape)}")
    require(tensor.device == x.device, f"{name} must be on {x.device} as x, got {tensor.device}")
    return tensor


def require_prediction(prediction: torch.Tensor, x: torch.Tensor) -> None:
    """Raises unless the prediction is rows of samples like those of ``x``."""
    require_state("prediction", prediction)
    require_like("prediction", prediction, x, (*prediction.shape[:1], *x.shape[1:]), prediction.dtype)


def rows_of(name: str, rows: torch.Tensor, x: torch.Tensor, slots: int | None = None) -> torch.Tensor:
    """Checked rows as (B, 16), or (B, 32) with a second line; a single one is repeated without a copy."""
    width = len(COLUMNS + SECOND_LINE) if rows.ndim and rows.shape[-1] > len(COLUMNS) else len(COLUMNS)
    slots = x.shape[0] if slots is None else slots
    require_like(name, rows, x, (width,) if rows.ndim == 1 else (slots, width), torch.float32)
    return (rows if rows.stride(-1) == 1 else rows.contiguous()).expand(slots, width)


def slot_values(name: str, values: torch.Tensor, x: torch.Tensor, slots: int, dtype: torch.dtype) -> torch.Tensor:
    """A checked tensor of one number a slot, contiguous."""
    return require_like(name, values, x, (slots,), dtype).contiguous()


def row_maps(
    x: torch.Tensor, prediction: torch.Tensor, row_cond: torch.Tensor | None, row_uncond: torch.Tensor | None
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Checked maps from slots to rows of the prediction: (``row_cond``, ``row_uncond``)."""
    slots = x.shape[0]
    require(
        row_cond is not None or prediction.shape[0] == slots,
        f"without row_cond slot i reads row i: prediction must have {slots} rows, got {prediction.shape[0]}",
    )
    maps = [
        None if given is None else slot_values(name, given, x, slots, torch.int32)
        for name, given in (("row_cond", row_cond), ("row_uncond", row_uncond))
    ]
    return maps[0], maps[1]


def next_inputs(
    x: torch.Tensor,
    dtypes: Sequence[torch.dtype],
    next_input: torch.Tensor | None,
    next_rows: torch.Tensor | None,
    next_cond: torch.Tensor | None,
    next_uncond: torch.Tensor | None,
) -> dict[str, Any]:
    """A kernel's arguments for the next forward's input rows: absent, or checked."""
    given = {"next_rows": next_rows, "next_cond": next_cond, "next_uncond": next_uncond}
    if next_input is None:
        for name, tensor in given.items():
            require(tensor is None, f"{name} says how next_input is written: pass next_input too")
        names = (*given, "next_input")
        return {**dict.fromkeys(names), "next_input_rows": 0, "next_input_stride": 0, "next_rows_stride": 0}
    if next_rows is None or next_cond is None or next_uncond is None:
        missing = [name for name, tensor in given.items() if tensor is None]
        raise ValueError(f"next_input needs next_rows, next_cond and next_uncond: {', '.join(missing)} missing")
    count, slots = next_input.shape[0], x.shape[0]
    target = written("next_input", require_like("next_input", next_input, x, (count, *x.shape[1:]), *dtypes))
    rows = rows_of("next_rows", next_rows, x)
    return {
        "next_input": target,
        "next_rows": rows,
        "next_cond": slot_values("next_cond", next_cond, x, slots, torch.int32),
        "next_uncond": slot_values("next_uncond", next_uncond, x, slots, torch.int32),
        "next_input_rows": count,
        "next_input_stride": target.stride(0),
        "next_rows_stride": rows.stride(0),
    }


def require_launchable(slots: int, n: int) -> None:
    """Raises if a launch's grid or 32-bit offsets cannot hold so many slots, or such long samples."""
    require(n < 1 << 31, f"a sample must have fewer than 2^31 elements, got {n}")
    require(slots < 1 << 16, f"a launch takes fewer than 2^16 slots, got {slots}")


def written(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """A tensor that is written in place, as (samples, elements). Raises unless its samples are dense and disjoint."""
    samples = tensor.shape[0]
    # A view as (samples, -1) is not defined for an empty tensor.
    dense = tensor.numel() == 0 or tensor[0].is_contiguous()
    disjoint = samples < 2 or tensor.numel() == 0 or tensor.stride(0) >= tensor[0].numel()
    require(
        dense and disjoint,
        f"{name} is written in place: each of its samples must be contiguous and apart from the others",
    )
    return tensor.view(samples, -1) if tensor.numel() else tensor


def read(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor that is only read, as (samples, elements); copied unless each sample is dense."""
    flat = tensor.reshape(tensor.shape[0], -1)
    return flat if flat.stride(1) == 1 or flat.shape[1] == 1 else flat.contiguous()


def require_apart(reads: Mapping[str, torch.Tensor | None], writes: Mapping[str, torch.Tensor | None]) -> None:
    """Raises if a written tensor overlaps another one, save ``out`` that is ``x``.

    Only contiguous tensors are compared: one may lie in the gaps of another, as slices of one buffer do.
    """
    spans = {
        name: (tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes)
        for name, tensor in (*reads.items(), *writes.items())
        if tensor is not None and tensor.numel() and tensor.is_contiguous()
    }
    for name in spans.keys() & writes.keys():
        for other in spans.keys() - {name}:
            (begin, end), (other_begin, other_end) = spans[name], spans[other]
            in_place = {name, other} == {"x", "out"} and begin == other_begin
            require(
                in_place or end <= other_begin or other_end <= begin,
                f"{name} must be apart from {other}: it is written while {other} is still to be read or written",
            )


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """Makes the arguments' device the current one, which Triton launches on."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
