"""The fused step alone, on arrays of the caller's."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt

from stepfuse import _core

State = TypeVar("State", npt.NDArray[np.float32], npt.NDArray[np.float16])


def step(
    x: State,
    eps: State,
    row: npt.NDArray[np.float32],
    eps_uncond: State | None = None,
    h: State | None = None,
    z: State | None = None,
    out: State | None = None,
    isa: str | None = None,
    h2: State | None = None,
    h3: State | None = None,
) -> State:
    """Guidance blend, both lines of the step and the history, in one pass over the state.

    Args:
        x: State, any shape, float32, float16, or bfloat16 as of the package ml_dtypes. All other arrays have its shape
            and dtype.
        eps: Network output for ``x``; the conditional one if ``eps_uncond`` is given.
        row: One row of a StepTable, shape (16,) or (32,), or one a sample of the batch, shape (B, 16) or (B, 32).
        eps_uncond: Unconditional output, blended as ``eps_uncond + g (eps - eps_uncond)``. None: ``eps`` is taken as
            it is.
        h: History, updated in place. Needed by rows that use it (``q_h`` or a ``u_`` column not 0).
        z: Standard normal noise. Needed by rows that add it (``q_z`` not 0).
        out: Where the next state goes, C-contiguous; may be ``x``. None allocates it.
        isa: Instruction set, one of ``stepfuse._core.isas()``; None takes the best. All give the same bits.
        h2: Second register of the history, updated in place. Needed by rows of 32 columns that use it.
        h3: Third register, likewise.

    Returns:
        The next state: ``out``.

    Raises:
        TypeError: If an array is no numpy array, or its dtype is not that of ``x`` or not supported.
        ValueError: If a shape differs, an array written in place is not contiguous or partly overlaps another, or
            ``h``, ``h2``, ``h3`` or ``z`` is needed and missing.

    Examples:
        >>> table = sf.samplers.ddim(sf.NoiseSchedule.linear(), steps=10, guidance_scale=3.0)
        >>> x, eps_cond, eps_uncond = np.ones((3, 1, 4, 8, 8), np.float32)
        >>> x = sf.step(x, eps_cond, table[0], eps_uncond=eps_uncond, out=x)
        >>> x.shape, x.dtype
        ((1, 4, 8, 8), dtype('float32'))
    """
    # By position: pybind11 interns every parameter's name anew for a call that has keywords, which costs half a
    # microsecond, as much as the step of a small image.
    return _core.step(x, eps, row, eps_uncond, h, z, out, isa, h2, h3)
