"""The fused step on torch tensors: checks, then one launch. Needs the extra ``stepfuse[kernels]``."""

from __future__ import annotations

from typing import Any

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
from stepfuse.kernels.columns import COLUMNS
from stepfuse.kernels.configs import COMPILE_OPTIONS, Config, config_for
from stepfuse.kernels.step_kernel import fused_step_kernel


def fused_step(
    x: torch.Tensor,
    prediction: torch.Tensor,
    rows: torch.Tensor,
    *,
    row_cond: torch.Tensor | None = None,
    row_uncond: torch.Tensor | None = None,
    h: torch.Tensor | None = None,
    z: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    seed: torch.Tensor | None = None,
    step: torch.Tensor | None = None,
    x0: torch.Tensor | None = None,
    next_input: torch.Tensor | None = None,
    next_rows: torch.Tensor | None = None,
    next_cond: torch.Tensor | None = None,
    next_uncond: torch.Tensor | None = None,
    next_timestep: torch.Tensor | None = None,
    nonfinite: torch.Tensor | None = None,
    h2: torch.Tensor | None = None,
    h3: torch.Tensor | None = None,
    config: Config | None = None,
) -> torch.Tensor:
    """One step of every slot, and the input rows of the next forward, in one pass over the state.

    All tensors are on one CUDA device (on the CPU where Triton runs under ``TRITON_INTERPRET=1``). B slots, samples of
    any shape, a forward of R rows. Tensors that are only read may have any strides: contiguous samples are read in
    place, others are copied first. No call synchronizes with the device. An error that only the device can detect, a
    row that needs a history or noise that is not given or a map entry that is not below R, comes out as NaN.

    ``torch.compile`` holds a call as one operator, ``torch.ops.stepfuse.fused_step``, without a graph break. Autograd
    does not record it.

    Args:
        x: State, (B, ...), float32, float16 or bfloat16.
        prediction: Network output, (R, ...), one of the same dtypes.
        rows: One row of a StepTable a slot, (B, 16) float32, or one for all, (16,). With a second line (B, 32) or
            (32,); a slot whose step has none has zeros there.
        row_cond: (B,) int32, each slot's conditional row of ``prediction``, -1: none. None: slot i has row i.
        row_uncond: (B,) int32, the unconditional row. Slots that have both are guided, by their row's g; slots that
            have neither are left alone. None: no slot has one.
        h: History, like ``x``, contiguous, updated in place for the slots whose rows use it.
        z: Standard normal noise, like ``x``.
        out: Where the next state goes, like ``x``, each sample contiguous; may be ``x``. None allocates it.
        seed: (B,) int64, the 64 bits of each slot's seed: noise is made in the kernel, the same as the engine's.
        step: (B,) int32, with ``seed``: number of each slot's step.
        x0: Where the predicted clean sample goes, like ``x``, contiguous.
        next_input: The next forward's input, (R', ...), dtype of ``prediction``, each sample contiguous. Needs
            ``next_rows``, ``next_cond`` and ``next_uncond``.
        next_rows: Each slot's next row, (B, 16) or (16,) float32: its s scales what is written, its t is the timestep.
        next_cond: (B,) int32, each slot's conditional row of ``next_input``, -1: none.
        next_uncond: (B,) int32, the unconditional row, -1: none.
        next_timestep: The next forward's timesteps, (R',) float32 or int64 (rounded, ties to even).
        nonfinite: (B,) int32, set to 1 for slots whose prediction or next state is not finite, else left alone.
        h2: Second register, like ``h``. Rows with a second line need all three, other rows take ``h`` alone.
        h3: Third register, likewise.
        config: Tile size and warps; the result does not depend on it.

    Returns:
        The next state: ``out``.

    Raises:
        TypeError: If a dtype is not the one named above.
        ValueError: If a shape or device is not the one named above; ``x`` is on the CPU and Triton does not interpret;
            R is not B and ``row_cond`` is None; only one of ``seed`` and ``step`` is given, or ``z`` as well; an
            argument named ``next_*`` is given without ``next_input``, or ``next_input`` without the three that it
            needs; rows have a second line and ``h``, ``h2`` or ``h3`` is missing, or have none and ``h2`` or ``h3`` is
            given; a tensor that is written is not contiguous as named above, or overlaps another one, save ``out``
            that is ``x``; B is 2^16 or more, or a sample has 2^31 elements or more.

    Examples:
        >>> import torch
        >>> from stepfuse.kernels import fused_step
        >>> device = "cuda" if torch.cuda.is_available() else "cpu"  # the CPU under TRITON_INTERPRET=1
        >>> table = sf.samplers.ddim(sf.NoiseSchedule.linear(), steps=4)
        >>> x, eps = torch.randn(2, 2, 4, 8, 8, device=device)
        >>> x = fused_step(x, eps, torch.from_numpy(table[0].copy()).to(device), out=x)
        >>> x.shape
        torch.Size([2, 4, 8, 8])
    """
    compiling = torch.compiler.is_compiling()
    if compiling and out is None:
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)  # an operator may not return what it writes to
    following = next_input, next_rows, next_cond, next_uncond, next_timestep
    tensors = (x, prediction, rows, row_cond, row_uncond, h, z, out, seed, step, x0, *following, nonfinite, h2, h3)
    if not compiling:
        return _checked_launch(*tensors, config)
    block, num_warps = (None, None) if config is None else (config.block, config.num_warps)
    torch.ops.stepfuse.fused_step.default(*tensors, block, num_warps)
    return out


def _checked_launch(
    x: torch.Tensor,
    prediction: torch.Tensor,
    rows: torch.Tensor,
    row_cond: torch.Tensor | None,
    row_uncond: torch.Tensor | None,
    h: torch.Tensor | None,
    z: torch.Tensor | None,
    out: torch.Tensor | None,
    seed: torch.Tensor | None,
    step: torch.Tensor | None,
    x0: torch.Tensor | None,
    next_input: torch.Tensor | None,
    next_rows: torch.Tensor | None,
    next_cond: torch.Tensor | None,
    next_uncond: torch.Tensor | None,
    next_timestep: torch.Tensor | None,
    nonfinite: torch.Tensor | None,
    h2: torch.Tensor | None,
    h3: torch.Tensor | None,
    config: Config | None,
) -> torch.Tensor:
    """Checks and one launch: ``fused_step`` outside of ``torch.compile``, and the operator's implementation."""
    require_state("x", x)
    require_prediction(prediction, x)
    slots, n = x.shape[0], x[:1].numel()
    row_cond, row_uncond = row_maps(x, prediction, row_cond, row_uncond)
    rows = rows_of("rows", rows, x)
    two_lines = rows.shape[-1] > len(COLUMNS)
    for name, given in (("h", h), ("h2", h2), ("h3", h3)):
        require(not two_lines or given is not None, f"rows with a second line need {name}, a tensor like x")
        require(two_lines or given is None or name == "h", f"{name} is of rows with a second line, got 16 columns")
    require((seed is None) == (step is None), "seed and step go together: pass both or neither")
    require(seed is None or z is None, "noise is z, or made from seed and step: pass one of them")
    if z is not None:
        z = read(require_like("z", z, x, x.shape, x.dtype)).contiguous()
    if seed is not None and step is not None:
        seed = slot_values("seed", seed, x, slots, torch.int64)
        step = slot_values("step", step, x, slots, torch.int32)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device) if out is None else out
    for name, given in (("out", out), ("h", h), ("h2", h2), ("h3", h3), ("x0", x0)):
        if given is not None:
            written(name, require_like(name, given, x, x.shape, x.dtype))
            require(name == "out" or given.is_contiguous(), f"{name} is written in place: it must be contiguous")
    if nonfinite is not None:
        written("nonfinite", require_like("nonfinite", nonfinite, x, (slots,), torch.int32))
    following = _next_forward(x, prediction, next_input, next_rows, next_cond, next_uncond, next_timestep)
    require_apart(
        {"x": x, "prediction": prediction, "z": z},
        {"out": out, "h": h, "h2": h2, "h3": h3, "x0": x0, "next_input": next_input},
    )
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
            h2=h2,
            h3=h3,
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
    """The kernel's arguments for the next forward's input rows and timesteps."""
    following = next_inputs(x, (prediction.dtype,), next_input, next_rows, next_cond, next_uncond)
    if next_timestep is not None:
        require(next_input is not None, "next_timestep says how next_input is written: pass next_input too")
        count = following["next_input_rows"]
        written("next_timestep", require_like("next_timestep", next_timestep, x, (count,), torch.float32, torch.int64))
        require(next_timestep.is_contiguous(), "next_timestep is written in place: it must be contiguous")
    whole = next_timestep is not None and next_timestep.dtype == torch.int64
    timesteps = {"next_t": None if whole else next_timestep, "next_t_int": next_timestep if whole else None}
    return {**following, **timesteps}


def _run_operator(*arguments: Any) -> None:
    block, num_warps = arguments[-2:]
    config = None if block is None else Config(block, num_warps)
    _checked_launch(*(*arguments[:-2], config))


# ``fused_step`` for ``torch.compile`` and ``torch.export``: every argument by position, ``out`` allocated, no result.
# Defined on the dispatcher itself: ``torch.library.custom_op`` would add more host time to a call than its checks take.
_library = torch.library.Library("stepfuse", "FRAGMENT")
_library.define(
    "fused_step(Tensor x, Tensor prediction, Tensor rows, Tensor? row_cond, Tensor? row_uncond, Tensor(a!)? h, "
    "Tensor? z, Tensor(b!) out, Tensor? seed, Tensor? step, Tensor(c!)? x0, Tensor(d!)? next_input, Tensor? next_rows, "
    "Tensor? next_cond, Tensor? next_uncond, Tensor(e!)? next_timestep, Tensor(f!)? nonfinite, Tensor(g!)? h2, "
    "Tensor(h!)? h3, int? block, int? num_warps) -> ()"
)
for _device in ("CPU", "CUDA"):
    _library.impl("fused_step", _run_operator, _device)
# Nothing is returned, so there is nothing to infer. The checks need real memory: they run with the operator.
torch.library.register_fake("stepfuse::fused_step", lambda *arguments: None, lib=_library)
