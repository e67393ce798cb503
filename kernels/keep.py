"""The known region of inpainting, on torch tensors: checks, then one launch. Needs ``stepfuse[kernels]``."""

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
    """Puts images back in the known regions of inpainting, in place, in what ``fused_step`` has written.

    ``x`` becomes mask x + (1 - mask) (signal image + noise z), z being the noise of the initial state. Slots without a
    known region are left alone. No call synchronizes with the device.

    Args:
        x: State after ``fused_step``, (B, ...), float32, float16 or bfloat16, each sample contiguous.
        known: (K, 3, ...) float32: image, mask (1: sampled, 0: known, between: blended), and z.
        known_row: (B,) int32, each slot's entry of ``known``, -1: none. It must be below K, which is not checked.
        levels: (B, 2) float32, signal and noise of each slot's state.
        row_cond: (B,) int32, as passed to ``fused_step``: a slot with neither row has not been stepped, and is left
            alone. None: slot i has row i.
        row_uncond: (B,) int32, the same.
        x0: Predicted clean samples, like ``x``, contiguous: the image is put back there too.
        next_input: The next forward's input, (R', ...), float32, float16 or bfloat16, each sample contiguous. Needs
            ``next_rows``, ``next_cond`` and ``next_uncond``, all as passed to ``fused_step``.
        next_rows: Each slot's next row, (B, 16) or (16,) float32: its s scales what is written.
        next_cond: (B,) int32, each slot's conditional row of ``next_input``, -1: none.
        next_uncond: (B,) int32, the unconditional row, -1: none.

    Returns:
        ``x``.

    Raises:
        TypeError: If a dtype is not the one named above.
        ValueError: If a shape or device is not the one named above; ``x`` is on the CPU and Triton does not interpret;
            an argument named ``next_*`` is given without ``next_input``, or ``next_input`` without the three that it
            needs; a tensor that is written is not contiguous as named above, or overlaps another one; B is 2^16 or
            more, or a sample has 2^31 elements or more.

    Examples:
        >>> import torch
        >>> from stepfuse.kernels import keep_known
        >>> device = "cuda" if torch.cuda.is_available() else "cpu"
        >>> x, known = torch.zeros(1, 64, device=device), torch.zeros(1, 3, 64, device=device)
        >>> known[0, 0] = 0.5  # the image; the mask is 0 everywhere: all of it is kept
        >>> levels = torch.tensor([[1.0, 0.0]], device=device)
        >>> keep_known(x, known, torch.zeros(1, dtype=torch.int32, device=device), levels)[0, 0].item()
        0.5
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
