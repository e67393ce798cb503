"""The fused step on torch tensors: checks, then one launch. Needs the extra ``stepfuse[kernels]``."""

from __future__ import annotations

import torch
import triton

from stepfuse.kernels.checks import (
    next_inputs,
    on_device,
    read,
    require,
    require_apart,
    require_launchable,
    require_like,
    require_prediction,
    require_state,
    row_maps,
    rows_of,
    slot_values,
    written,
)
from stepfuse.kernels.configs import COMPILE_OPTIONS, Config, config_for
from stepfuse.kernels.triton_step import fused_step_kernel


def fused_step(
    x: torch.Tensor,
    prediction: torch.Tensor,
    rows: torch.Tensor,
    *,
    row_cond: torch.Tensor | None = None,
    row_uncond: torch.Tensor | None = None,
    h: torch.Tensor | None = None,
    z: torch.Tensor | None = None,
    seed: torch.Tensor | None = None,
    step: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    x0: torch.Tensor | None = None,
    next_input: torch.Tensor | None = None,
    next_rows: torch.Tensor | None = None,
    next_cond: torch.Tensor | None = None,
    next_uncond: torch.Tensor | None = None,
    next_timestep: torch.Tensor | None = None,
    nonfinite: torch.Tensor | None = None,
    config: Config | None = None,
) -> torch.Tensor:
    """One step of every slot, and the input rows of the next forward, in one pass over the state.

    All tensors are on one CUDA device (on the CPU where Triton runs under ``TRITON_INTERPRET=1``). B slots, samples of
    any shape, a forward of R rows. What is only read may have any strides: samples that are contiguous each are read
    where they are, others are copied first. Nothing waits for the device: what only the device can see, a row that
    needs a history or noise that is not given or a map that points behind the last row, comes out as NaN.

    Args:
        x: State, (B, ...), float32, float16 or bfloat16.
        prediction: Network output, (R, ...), one of the same dtypes.
        rows: One row of a StepTable a slot, (B, 16) float32, or one for all, (16,).
        row_cond: (B,) int32, each slot's row of ``prediction`` with conditioning, -1: none. None: slot i has row i.
        row_uncond: (B,) int32, the row without. Slots that have both are guided, by their row's g; slots that have
            neither are left alone. None: no slot has one.
        h: History, like ``x``, contiguous, updated in place for the slots whose rows use it.
        z: Standard normal noise, like ``x``.
        seed: (B,) int64, the 64 bits of each slot's seed: noise is made in the kernel, the same as the engine's.
        step: (B,) int32, with ``seed``: number of each slot's step.
        out: Where the next state goes, like ``x``, each sample contiguous; may be ``x``. None allocates it.
        x0: Where the predicted clean sample goes, like ``x``, contiguous.
        next_input: The next forward's input, (R', ...), dtype of ``prediction``, each sample contiguous. Needs
            ``next_rows``, ``next_cond`` and ``next_uncond``.
        next_rows: Each slot's next row, (B, 16) or (16,): its s scales what is written, its t is the timestep.
        next_cond: (B,) int32, the row of ``next_input`` that a slot's next conditional pass reads, -1: none.
        next_uncond: (B,) int32, the same of the pass without conditioning.
        next_timestep: The next forward's timesteps, (R',) float32 or int64 (rounded, ties to even).
        nonfinite: (B,) int32, set to 1 for slots whose prediction or next state is not finite, else left alone.
        config: Size of tiles; the result does not depend on it.

    Returns:
        The next state: ``out``.

    Raises:
        TypeError: If a dtype is not the one named above.
        ValueError: If a shape or device differs, a tensor that is written is not contiguous or shares memory that is
            still to be read, or one argument needs another that is missing.
    """
    require_state("x", x)
    require_prediction(prediction, x)
    slots, n = x.shape[0], x[:1].numel()
    row_cond, row_uncond = row_maps(x, prediction, row_cond, row_uncond)
    rows = rows_of("rows", rows, x)
    require((seed is None) == (step is None), "seed and step go together: pass both or neither")
    require(seed is None or z is None, "noise is z, or made from seed and step: pass one of them")
    if z is not None:
        z = read(require_like("z", z, x, x.shape, x.dtype)).contiguous()
    if seed is not None and step is not None:
        seed = slot_values("seed", seed, x, slots, torch.int64)
        step = slot_values("step", step, x, slots, torch.int32)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device) if out is None else out
    for name, given in (("out", out), ("h", h), ("x0", x0)):
        if given is not None:
            written(name, require_like(name, given, x, x.shape, x.dtype))
            require(name == "out" or given.is_contiguous(), f"{name} is written in place: it must be contiguous")
    if nonfinite is not None:
        written("nonfinite", require_like("nonfinite", nonfinite, x, (slots,), torch.int32))
    following = _next_forward(x, prediction, next_input, next_rows, next_cond, next_uncond, next_timestep)
    require_apart({"x": x, "prediction": prediction, "z": z}, {"out": out, "h": h, "x0": x0, "next_input": next_input})
    if slots == 0 or n == 0:
        return out
    require_launchable(slots, n)
    state, outputs, target = read(x), read(prediction), written("out", out)
    config = config or config_for(slots, n)
    with on_device(x.device):
        fused_step_kernel[(triton.cdiv(n, config.block), slots)](
            x=state,
            prediction=outputs,
            rows=rows,
            row_cond=row_cond,
            row_uncond=row_uncond,
            out=target,
            h=h,
            z=z,
            seed=seed,
            step=step,
            x0=x0,
            nonfinite=nonfinite,
            n=n,
            prediction_rows=outputs.shape[0],
            x_stride=state.stride(0),
            prediction_stride=outputs.stride(0),
            out_stride=target.stride(0),
            rows_stride=rows.stride(0),
            **following,
            BLOCK=config.block,
            num_warps=config.num_warps,
            **COMPILE_OPTIONS,
        )
    return out


def _next_forward(
    x: torch.Tensor,
    prediction: torch.Tensor,
    next_input: torch.Tensor | None,
    next_rows: torch.Tensor | None,
    next_cond: torch.Tensor | None,
    next_uncond: torch.Tensor | None,
    next_timestep: torch.Tensor | None,
) -> dict[str, torch.Tensor | int | None]:
    """The kernel's arguments that say where the next forward's rows go."""
    following = next_inputs(x, (prediction.dtype,), next_input, next_rows, next_cond, next_uncond)
    if next_timestep is not None:
        require(next_input is not None, "next_timestep says how next_input is written: pass next_input too")
        count = following["next_input_rows"]
        written("next_timestep", require_like("next_timestep", next_timestep, x, (count,), torch.float32, torch.int64))
        require(next_timestep.is_contiguous(), "next_timestep is written in place: it must be contiguous")
    whole = next_timestep is not None and next_timestep.dtype == torch.int64
    timesteps = {"next_t": None if whole else next_timestep, "next_t_int": next_timestep if whole else None}
    return {**following, **timesteps}
