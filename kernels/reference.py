"""The oracle of the fused step: the formulas as they stand, in float64."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def fused_step_ref(
    row: npt.ArrayLike,
    x: npt.ArrayLike,
    eps: npt.ArrayLike,
    eps_uncond: npt.ArrayLike | None = None,
    h: npt.ArrayLike | None = None,
    z: npt.ArrayLike | None = None,
) -> tuple[Array, Array, Array]:
    """One row over arrays of one shape.

    Args:
        row: Shape (16,), columns as in ``stepfuse.steptable.COLUMNS``.
        x: State.
        eps: Network output; the conditional one if ``eps_uncond`` is given.
        eps_uncond: Unconditional output, or None.
        h: History, or None for zeros.
        z: Noise, or None for zeros.

    Returns:
        Next state, history, and the implied clean sample, float64.
    """
    _, _, g, p_x, p_e, lo, hi, q_x, q_d, q_e, q_h, q_z, u_x, u_d, u_e, u_h = np.asarray(row, dtype=np.float64)
    x, e = np.asarray(x, dtype=np.float64), np.asarray(eps, dtype=np.float64)
    if eps_uncond is not None:
        e_u = np.asarray(eps_uncond, dtype=np.float64)
        e = e_u + g * (e - e_u)
    h = np.zeros_like(x) if h is None else np.asarray(h, dtype=np.float64)
    z = np.zeros_like(x) if z is None else np.asarray(z, dtype=np.float64)
    d = np.clip(p_x * x + p_e * e, lo, hi)
    return q_x * x + q_d * d + q_e * e + q_h * h + q_z * z, u_x * x + u_d * d + u_e * e + u_h * h, d
