"""Guidance that keeps the norm of patches, on torch tensors: checks, then a launch. Needs ``stepfuse[kernels]``."""

from __future__ import annotations

import torch
import triton

from stepfuse.kernels.checks import on_device, require, require_launchable, require_state, rows_of, slot_values, written
from stepfuse.kernels.configs import COMPILE_OPTIONS, RENORM
from stepfuse.kernels.renorm_kernel import renormed_predictions_kernel


def cfg_renorm(
    prediction: torch.Tensor,
    rows: torch.Tensor,
    patch: int,
    row_cond: torch.Tensor,
    row_uncond: torch.Tensor,
) -> torch.Tensor:
    """Guides predictions and scales them to the norm of the conditional one, patch by patch, in place.

    Both predictions of a guided slot become e = k (e_u + g (e_c - e_u)), where k = |e_c| / |e_u + g (e_c - e_u)| over
    all channels of p x p elements, as diffusers' ``QwenImagePipeline`` does in its tokens. ``fused_step`` with the same
    rows then finds e, since it blends two that are equal. Unguided slots are left alone. Call it before
    ``dynamic_threshold``, and not with ``adapt_guidance``.

    Args:
        prediction: Network output, (R, C, H, W), float32, float16 or bfloat16, each row contiguous. The rows of two
            slots are not the same.
        rows: (B, 16) float32, or (B, 32) with a second line.
        patch: p, which divides H and W.
        row_cond: (B,) int32, as for ``fused_step``.
        row_uncond: (B,) int32, as for ``fused_step``.

    Returns:
        ``prediction``.

    Raises:
        TypeError: If a dtype is not the one named above.
        ValueError: If a shape or device is not the one named above, or ``prediction`` is on the CPU and Triton does not
            interpret.

    Examples:
        >>> import torch
        >>> from stepfuse.kernels import cfg_renorm
        >>> device = "cuda" if torch.cuda.is_available() else "cpu"
        >>> row = sf.samplers.euler(sf.NoiseSchedule.flow(), steps=4, guidance_scale=4.0)[0]
        >>> rows = torch.from_numpy(row[None].copy()).to(device)
        >>> prediction = torch.randn(2, 16, 8, 8, device=device)
        >>> cond, uncond = torch.tensor([[0], [1]], dtype=torch.int32, device=device)
        >>> norm = prediction[0].norm().item()
        >>> guided = cfg_renorm(prediction, rows, 2, cond, uncond)
        >>> abs(guided[0].norm().item() - norm) < 1e-3, torch.equal(guided[0], guided[1])
        (True, True)
    """
    require_state("prediction", prediction)
    require(prediction.ndim == 4, f"prediction must have shape (R, C, H, W), got {tuple(prediction.shape)}")
    channels, height, width = prediction.shape[1:]
    require(
        patch > 0 and height % patch == 0 and width % patch == 0,
        f"patch must be at least 1 and divide height and width, got {patch} for {tuple(prediction.shape)}",
    )
    slots, n = len(rows), channels * height * width
    rows = rows_of("rows", rows, prediction, slots)
    row_cond = slot_values("row_cond", row_cond, prediction, slots, torch.int32)
    row_uncond = slot_values("row_uncond", row_uncond, prediction, slots, torch.int32)
    target = written("prediction", prediction)
    if slots == 0 or n == 0:
        return prediction
    require_launchable(slots, n)
    patches = torch.tensor([[patch, channels, height, width]], dtype=torch.int32).repeat(slots, 1).to(prediction.device)
    with on_device(prediction.device):
        renormed_predictions_kernel[(triton.cdiv(n, RENORM.block), slots)](
            prediction=target,
            rows=rows,
            row_cond=row_cond,
            row_uncond=row_uncond,
            patches=patches,
            n=n,
            prediction_rows=prediction.shape[0],
            prediction_stride=target.stride(0),
            rows_stride=rows.stride(0),
            BLOCK=RENORM.block,
            num_warps=RENORM.num_warps,
            **COMPILE_OPTIONS,
        )
    return prediction
