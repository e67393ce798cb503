"""What a mask keeps, on torch tensors: checks, then one launch. Needs the extra ``stepfuse[kernels]``."""

from __future__ import annotations

import torch
import triton

from stepfuse.kernels.checks import (
    STORAGE,
    next_inputs,
    on_device,
    require,
    require_apart,
    require_launchable,
    require_like,
    require_state,
    slot_values,
    written,
)
from stepfuse.kernels.configs import COMPILE_OPTIONS, KEEP
from stepfuse.kernels.keep_kernel import keep_known_kernel


def keep_known(
    x: torch.Tensor,
    known: torch.Tensor,
    known_row: torch.Tensor,
    levels: torch.Tensor,
    *,
    row_cond: torch.Tensor | None = None,
    row_uncond: torch.Tensor | None = None,
    x0: torch.Tensor | None = None,
    next_input: torch.Tensor | None = None,
    next_rows: torch.Tensor | None = None,
    next_cond: torch.Tensor | None = None,
    next_uncond: torch.Tensor | None = None,
) -> torch.Tensor:
    """Puts images back where masks keep them, in place, behind ``fused_step`` and in what it has written.

    ``x`` becomes mask x + (1 - mask) (signal image + noise z), z being the noise that the sample began with. Slots that
    keep nothing are left alone. Nothing waits for the device.

    Args:
        x: State that ``fused_step`` has left, (B, ...), float32, float16 or bfloat16, each sample contiguous.
        known: (K, 3, ...) float32: image, mask (1: drawn, 0: kept, between: blended), and z.
        known_row: (B,) int32, which of ``known`` is a slot's, below K, which only the device could see; -1: none.
        levels: (B, 2) float32, signal and noise of each slot's state.
        row_cond: (B,) int32, as ``fused_step`` was given: a slot with neither row has done no step, and is left alone.
            None: slot i has row i.
        row_uncond: (B,) int32, the same.
        x0: Predicted clean samples, like ``x``, contiguous: the image is put back there too.
        next_input: The next forward's input, (R', ...), float32, float16 or bfloat16, each sample contiguous. Needs
            ``next_rows``, ``next_cond`` and ``next_uncond``, all as ``fused_step`` was given.
        next_rows: Each slot's next row, (B, 16) or (16,) float32: its s scales what is written.
        next_cond: (B,) int32, the row of ``next_input`` that a slot's next conditional pass reads, -1: none.
        next_uncond: (B,) int32, the same of the pass without conditioning.

    Returns:
        ``x``.

    Raises:
        TypeError: If a dtype is not the one named above.
        ValueError: If a shape or device differs, a tensor that is written is not contiguous or shares memory that is
            still to be read, or one argument needs another that is missing.
    """
    require_state("x", x)
    slots, n = x.shape[0], x[:1].numel()
    require(known.ndim > 0, f"known must have shape (K, 3, {', '.join(map(str, x.shape[1:]))}), got ()")
    known = require_like("known", known, x, (known.shape[0], 3, *x.shape[1:]), torch.float32).contiguous()
    known_row = slot_values("known_row", known_row, x, slots, torch.int32)
    levels = require_like("levels", levels, x, (slots, 2), torch.float32).contiguous()
    cond, uncond = (
        None if given is None else slot_values(name, given, x, slots, torch.int32)
        for name, given in (("row_cond", row_cond), ("row_uncond", row_uncond))
    )
    if x0 is not None:
        written("x0", require_like("x0", x0, x, x.shape, x.dtype))
        require(x0.is_contiguous(), "x0 is written in place: it must be contiguous")
    following = next_inputs(x, STORAGE, next_input, next_rows, next_cond, next_uncond)
    target = written("x", x)
    require_apart({"known": known}, {"x": x, "x0": x0, "next_input": next_input})
    if slots == 0 or n == 0:
        return x
    require_launchable(slots, n)
    with on_device(x.device):
        keep_known_kernel[(triton.cdiv(n, KEEP.block), slots)](
            x=target,
            known=known,
            known_row=known_row,
            levels=levels,
            x0=x0,
            row_cond=cond,
            row_uncond=uncond,
            n=n,
            x_stride=target.stride(0),
            **following,
            BLOCK=KEEP.block,
            num_warps=KEEP.num_warps,
            **COMPILE_OPTIONS,
        )
    return x
