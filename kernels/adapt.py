"""Guidance and dynamic thresholding on torch tensors: checks, then launches. Needs ``stepfuse[kernels]``."""

from __future__ import annotations

import torch
import triton

from stepfuse.kernels.adapt_kernel import (
    COUNTS,
    SHIFTS,
    SUMS,
    guidance_sums_kernel,
    guided_rows_kernel,
    magnitude_counts_kernel,
    thresholded_rows_kernel,
)
from stepfuse.kernels.checks import (
    on_device,
    read,
    require,
    require_prediction,
    require_state,
    row_maps,
    rows_of,
    slot_values,
)
from stepfuse.kernels.columns import COLUMNS
from stepfuse.kernels.configs import (
    COMPILE_OPTIONS,
    COUNT_BLOCK,
    COUNT_WARPS,
    GATHER_BLOCK,
    GATHER_WARPS,
    SELECT_TILES,
    SELECT_WARPS,
    SUMS_BLOCK,
    SUMS_WARPS,
)


def guidance_rescale(
    prediction: torch.Tensor,
    rows: torch.Tensor,
    phi: torch.Tensor,
    row_cond: torch.Tensor,
    row_uncond: torch.Tensor,
) -> torch.Tensor:
    """Rows with guidance rescale folded in: p_e, q_e, u_e and v_e times phi std(e_c) / std(e) + 1 - phi.

    Lin et al. (2023), section 3.4. Unguided slots, and those whose prediction is constant or not finite, keep their
    rows. Call it before ``dynamic_threshold``.

    Args:
        prediction: Network output, (R, ...), as for ``fused_step``.
        rows: (B, 16) float32, or (B, 32) with a second line.
        phi: (B,) float32, 0 (off) to 1 (the blend gets the deviation of the conditional prediction).
        row_cond: (B,) int32, as for ``fused_step``.
        row_uncond: (B,) int32, as for ``fused_step``.

    Returns:
        New rows, of the shape of ``rows``.

    Raises:
        TypeError: If a dtype is not the one named above.
        ValueError: If a shape or device is not the one named above, or ``prediction`` is on the CPU and Triton does not
            interpret.

    Examples:
        >>> import torch
        >>> from stepfuse.kernels import guidance_rescale
        >>> device = "cuda" if torch.cuda.is_available() else "cpu"
        >>> row = sf.samplers.ddim(sf.NoiseSchedule.linear(), steps=4, guidance_scale=7.5)[0]
        >>> rows = torch.from_numpy(row[None].copy()).to(device)
        >>> prediction, phi = torch.randn(2, 64, device=device), torch.tensor([0.7], device=device)
        >>> cond, uncond = torch.tensor([[0], [1]], dtype=torch.int32, device=device)
        >>> guidance_rescale(prediction, rows, phi, cond, uncond).shape
        torch.Size([1, 16])
    """
    require_state("prediction", prediction)
    require_slot_rows(rows)
    phi = slot_values("phi", phi, prediction, rows.shape[0], torch.float32)
    guidance = torch.zeros((rows.shape[0], 4), dtype=torch.float32, device=prediction.device)
    guidance[:, 0] = phi
    return _adapted(read(prediction), read(prediction), rows, guidance, row_cond, row_uncond)


def adapt_guidance(
    x: torch.Tensor,
    prediction: torch.Tensor,
    rows: torch.Tensor,
    guidance: torch.Tensor,
    row_cond: torch.Tensor,
    row_uncond: torch.Tensor,
) -> torch.Tensor:
    """Rows with each slot's way of guidance folded in: APG, CFG-Zero*, guidance rescale.

    Sadat et al. (2024), Fan et al. (2025), Lin et al. (2023), section 3.4; ``StepTable.adapt`` has the same by name.
    Unguided slots keep their rows. Call it before ``dynamic_threshold``.

    Args:
        x: State, (B, ...), as for ``fused_step``; read of slots with ``"projected_clean"``.
        prediction: Network output, (R, ...).
        rows: (B, 16) float32, or (B, 32) with a second line.
        guidance: (B, 4) float32, of each slot: phi of guidance rescale, 0 (off) to 1; which of
            ``stepfuse.kernels.columns.BLENDS``, by number; and of the two that project, eta and the norm's threshold, 0
            for none.
        row_cond: (B,) int32, as for ``fused_step``.
        row_uncond: (B,) int32, as for ``fused_step``.

    Returns:
        New rows, of the shape of ``rows``.

    Raises:
        TypeError: If a dtype is not the one named above.
        ValueError: If a shape or device is not the one named above, or ``x`` is on the CPU and Triton does not
            interpret.

    Examples:
        >>> import torch
        >>> from stepfuse.kernels import adapt_guidance
        >>> device = "cuda" if torch.cuda.is_available() else "cpu"
        >>> row = sf.samplers.ddim(sf.NoiseSchedule.linear(), steps=4, guidance_scale=7.5)[0]
        >>> rows = torch.from_numpy(row[None].copy()).to(device)
        >>> x, prediction = torch.randn(1, 64, device=device), torch.randn(2, 64, device=device)
        >>> guidance = torch.tensor([[0.7, 0.0, 0.0, 0.0]], device=device)  # rescale by 0.7
        >>> cond, uncond = torch.tensor([[0], [1]], dtype=torch.int32, device=device)
        >>> adapt_guidance(x, prediction, rows, guidance, cond, uncond).shape
        torch.Size([1, 16])
    """
    require_state("x", x)
    require_prediction(prediction, x)
    require_slot_rows(rows)
    require(
        guidance.dtype == torch.float32 and guidance.shape == (rows.shape[0], 4),
        f"guidance must be float32 of shape (B, 4), got {guidance.dtype} {tuple(guidance.shape)}",
    )
    require(x.shape[0] == rows.shape[0], f"rows must be one for each of {x.shape[0]} slots, got {rows.shape[0]}")
    return _adapted(read(x), read(prediction), rows, guidance.contiguous(), row_cond, row_uncond)


def require_slot_rows(rows: torch.Tensor) -> None:
    """Refuses a row that is one for all slots."""
    require(rows.ndim == 2, f"rows must have shape (B, {len(COLUMNS)}), got {tuple(rows.shape)}")


def _adapted(
    x: torch.Tensor,
    prediction: torch.Tensor,
    rows: torch.Tensor,
    guidance: torch.Tensor,
    row_cond: torch.Tensor,
    row_uncond: torch.Tensor,
) -> torch.Tensor:
    slots, n = rows.shape[0], prediction[:1].numel()
    rows = rows_of("rows", rows, prediction, slots).contiguous()
    row_cond = slot_values("row_cond", row_cond, prediction, slots, torch.int32)
    row_uncond = slot_values("row_uncond", row_uncond, prediction, slots, torch.int32)
    adapted = torch.empty_like(rows)
    if slots == 0 or n == 0:
        return adapted.copy_(rows)
    tiles = triton.cdiv(n, SUMS_BLOCK)
    sums = torch.empty((slots, tiles, SUMS.value), dtype=torch.float64, device=prediction.device)
    with on_device(prediction.device):
        guidance_sums_kernel[(tiles, slots)](
            prediction=prediction,
            x=x,
            guidance=guidance,
            row_cond=row_cond,
            row_uncond=row_uncond,
            sums=sums,
            n=n,
            prediction_rows=prediction.shape[0],
            x_stride=x.stride(0),
            prediction_stride=prediction.stride(0),
            BLOCK=SUMS_BLOCK,
            num_warps=SUMS_WARPS,
            **COMPILE_OPTIONS,
        )
        guided_rows_kernel[(slots,)](
            sums=sums,
            rows=rows,
            row_cond=row_cond,
            row_uncond=row_uncond,
            guidance=guidance,
            adapted=adapted,
            n=n,
            tiles=tiles,
            rows_stride=rows.stride(0),
            BLOCK=GATHER_BLOCK,
            num_warps=GATHER_WARPS,
            **COMPILE_OPTIONS,
        )
    return adapted


def dynamic_threshold(
    x: torch.Tensor,
    prediction: torch.Tensor,
    rows: torch.Tensor,
    ratio: torch.Tensor,
    largest: torch.Tensor,
    *,
    row_cond: torch.Tensor | None = None,
    row_uncond: torch.Tensor | None = None,
) -> torch.Tensor:
    """Rows with dynamic thresholding folded in: d is clamped to [-s, s] and divided by s, a quantile of its magnitude.

    Saharia et al. (2022), section 2.3. s is at least 1; slots whose d is not finite keep their rows. Samples are
    read four times, tile by tile.

    Args:
        x: State, (B, ...), as for ``fused_step``.
        prediction: Network output, (R, ...).
        rows: (B, 16) float32, or (16,) for all; or of 32 columns with a second line.
        ratio: (B,) float32, the quantile, 0 (off) to 1.
        largest: (B,) float32, the largest s, at least 1.
        row_cond: (B,) int32, as for ``fused_step``.
        row_uncond: (B,) int32, as for ``fused_step``.

    Returns:
        New rows, of the shape of ``rows``.

    Raises:
        TypeError: If a dtype is not the one named above.
        ValueError: If a shape or device is not the one named above; ``x`` is on the CPU and Triton does not interpret;
            R is not B and ``row_cond`` is None; or a sample has 2^31 elements or more.

    Examples:
        >>> import torch
        >>> from stepfuse.kernels import dynamic_threshold
        >>> device = "cuda" if torch.cuda.is_available() else "cpu"
        >>> row = sf.samplers.ddim(sf.NoiseSchedule.linear(), steps=4)[0]
        >>> rows = torch.from_numpy(row[None].copy()).to(device)
        >>> x, prediction = torch.randn(2, 1, 64, device=device)
        >>> ratio, largest = torch.tensor([[0.995], [10.0]], device=device)
        >>> dynamic_threshold(x, prediction, rows, ratio, largest).shape
        torch.Size([1, 16])
    """
    require_state("x", x)
    require_prediction(prediction, x)
    slots, n = x.shape[0], x[:1].numel()
    row_cond, row_uncond = row_maps(x, prediction, row_cond, row_uncond)
    rows = rows_of("rows", rows, x).contiguous()
    ratio = slot_values("ratio", ratio, x, slots, torch.float32)
    largest = slot_values("largest", largest, x, slots, torch.float32)
    adapted = torch.empty_like(rows)
    if slots == 0 or n == 0:
        return adapted.copy_(rows)
    require(n < 1 << 31, f"a sample must have fewer than 2^31 elements, got {n}")
    state, outputs = read(x), read(prediction)
    tiles = triton.cdiv(n, COUNT_BLOCK)
    counts = torch.empty((slots, tiles + 1, COUNTS.value), dtype=torch.int32, device=x.device)
    with on_device(x.device):
        for shift in SHIFTS:
            magnitude_counts_kernel[(tiles, slots)](
                x=state,
                prediction=outputs,
                rows=rows,
                row_cond=row_cond,
                row_uncond=row_uncond,
                ratio=ratio,
                counts=counts,
                n=n,
                shift=shift,
                prediction_rows=outputs.shape[0],
                x_stride=state.stride(0),
                prediction_stride=outputs.stride(0),
                rows_stride=rows.stride(0),
                BLOCK=COUNT_BLOCK,
                num_warps=COUNT_WARPS,
                **COMPILE_OPTIONS,
            )
            thresholded_rows_kernel[(slots,)](
                counts=counts,
                rows=rows,
                row_cond=row_cond,
                row_uncond=row_uncond,
                ratio=ratio,
                largest=largest,
                adapted=adapted,
                n=n,
                tiles=tiles,
                shift=shift,
                prediction_rows=outputs.shape[0],
                rows_stride=rows.stride(0),
                BLOCK=SELECT_TILES,
                num_warps=SELECT_WARPS,
                **COMPILE_OPTIONS,
            )
    return adapted
