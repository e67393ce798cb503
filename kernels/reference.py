"""The oracles of the kernels: the formulas as they stand, in float64."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from stepfuse.kernels.columns import COLUMNS, OF_PREDICTION

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
        row: Shape (16,), columns as in ``stepfuse.samplers.table.COLUMNS``.
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


def keep_known_ref(
    known: npt.ArrayLike, level: tuple[float, float], x: npt.ArrayLike, x0: npt.ArrayLike | None = None
) -> tuple[Array, Array | None]:
    """A state, and the implied clean sample if there is one, with an image put back where a mask keeps it.

    Lugmayr et al. (2022), Eq. 8, with the noise that the sample began with in the place of new noise.

    Args:
        known: Shape (3, ...): image, mask (1: drawn, 0: the image's), and that noise.
        level: Signal and noise of the state.
        x: State.
        x0: Clean sample, or None.

    Returns:
        State and clean sample, float64.
    """
    image, mask, noise = np.asarray(known, dtype=np.float64)
    signal, sigma = level
    kept = mask * np.asarray(x, dtype=np.float64) + (1 - mask) * (signal * image + sigma * noise)
    return kept, None if x0 is None else mask * np.asarray(x0, dtype=np.float64) + (1 - mask) * image


def guidance_rescale_ref(row: npt.ArrayLike, phi: float, eps: npt.ArrayLike, eps_uncond: npt.ArrayLike) -> Array:
    """The row of a guided step with p_e, q_e and u_e scaled so that the blend's deviation comes near to ``eps``'s.

    Lin et al. (2023), section 3.4: the factor is phi std(e_c) / std(e) + 1 - phi.
    """
    adapted = np.array(row, dtype=np.float64)
    e_c, e_u = np.asarray(eps, dtype=np.float64), np.asarray(eps_uncond, dtype=np.float64)
    blend = e_u + adapted[COLUMNS.index("g")] * (e_c - e_u)
    factor = phi * np.std(e_c) / np.std(blend) + 1 - phi
    adapted[[COLUMNS.index(name) for name in OF_PREDICTION]] *= factor
    return adapted


def dynamic_threshold_ref(
    row: npt.ArrayLike,
    ratio: float,
    largest: float,
    x: npt.ArrayLike,
    eps: npt.ArrayLike,
    eps_uncond: npt.ArrayLike | None = None,
) -> Array:
    """The row that clamps d to [-s, s] and divides it by s, a quantile of its magnitude between 1 and ``largest``.

    Saharia et al. (2022), section 2.3.
    """
    adapted = np.array(row, dtype=np.float64)
    unclamped = adapted.copy()
    unclamped[[COLUMNS.index("lo"), COLUMNS.index("hi")]] = -np.inf, np.inf
    _, _, d = fused_step_ref(unclamped, x, eps, eps_uncond)
    s = min(max(np.quantile(np.abs(d), ratio), 1.0), largest)
    adapted[[COLUMNS.index("p_x"), COLUMNS.index("p_e")]] /= s
    adapted[[COLUMNS.index("lo"), COLUMNS.index("hi")]] = -1, 1
    return adapted
