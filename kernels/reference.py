"""The kernels' oracles: the formulas as written, in float64. Arguments come in the order of the kernels' launchers."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from stepfuse.kernels.columns import COLUMNS, OF_PREDICTION

Array = npt.NDArray[np.float64]


def fused_step_ref(
    x: npt.ArrayLike,
    eps: npt.ArrayLike,
    row: npt.ArrayLike,
    eps_uncond: npt.ArrayLike | None = None,
    h: npt.ArrayLike | None = None,
    z: npt.ArrayLike | None = None,
) -> tuple[Array, Array, Array]:
    """One step: one row of a StepTable over arrays of one shape.

    Args:
        x: State, any shape.
        eps: Network output, like ``x``; the conditional one if ``eps_uncond`` is given.
        row: Shape (16,), columns as in ``stepfuse.samplers.table.COLUMNS``.
        eps_uncond: Unconditional output, like ``x``, or None for an unguided step.
        h: History, like ``x``, or None for zeros.
        z: Standard normal noise, like ``x``, or None for zeros.

    Returns:
        Next state, history, and the predicted clean sample, like ``x``, float64.
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
    x: npt.ArrayLike, known: npt.ArrayLike, level: tuple[float, float], x0: npt.ArrayLike | None = None
) -> tuple[Array, Array | None]:
    """A state, and the predicted clean sample if given, with an image put back in the known region of inpainting.

    Lugmayr et al. (2022), Eq. 8, with the noise of the initial state in the place of new noise.

    Args:
        x: State, any shape.
        known: Shape (3, ...): image, mask (1: sampled, 0: known, between: blended), and the initial state's noise.
        level: Signal and noise of the state.
        x0: Predicted clean sample, like ``x``, or None.

    Returns:
        State and clean sample, like ``x``, float64; None without a clean sample.
    """
    image, mask, noise = np.asarray(known, dtype=np.float64)
    signal, sigma = level
    kept = mask * np.asarray(x, dtype=np.float64) + (1 - mask) * (signal * image + sigma * noise)
    return kept, None if x0 is None else mask * np.asarray(x0, dtype=np.float64) + (1 - mask) * image


def guidance_rescale_ref(eps: npt.ArrayLike, row: npt.ArrayLike, phi: float, eps_uncond: npt.ArrayLike) -> Array:
    """The row of a guided step with p_e, q_e and u_e times phi std(e_c) / std(e) + 1 - phi.

    Lin et al. (2023), section 3.4.

    Args:
        eps: Conditional output, any shape.
        row: Shape (16,).
        phi: 0 (off) to 1 (the blend gets the deviation of the conditional output).
        eps_uncond: Unconditional output, like ``eps``.

    Returns:
        The adapted row, (16,) float64.
    """
    adapted = np.array(row, dtype=np.float64)
    e_c, e_u = np.asarray(eps, dtype=np.float64), np.asarray(eps_uncond, dtype=np.float64)
    blend = e_u + adapted[COLUMNS.index("g")] * (e_c - e_u)
    factor = phi * np.std(e_c) / np.std(blend) + 1 - phi
    adapted[[COLUMNS.index(name) for name in OF_PREDICTION]] *= factor
    return adapted


def dynamic_threshold_ref(
    x: npt.ArrayLike,
    eps: npt.ArrayLike,
    row: npt.ArrayLike,
    ratio: float,
    largest: float,
    eps_uncond: npt.ArrayLike | None = None,
) -> Array:
    """The row that clamps d to [-s, s] and divides it by s: Saharia et al. (2022), section 2.3.

    Args:
        x: State, any shape.
        eps: Network output, like ``x``; the conditional one if ``eps_uncond`` is given.
        row: Shape (16,).
        ratio: s is this quantile of the magnitude of d, but at least 1.
        largest: The largest s, at least 1.
        eps_uncond: Unconditional output, like ``x``, or None for an unguided step.

    Returns:
        The adapted row, (16,) float64.
    """
    adapted = np.array(row, dtype=np.float64)
    unclamped = adapted.copy()
    unclamped[[COLUMNS.index("lo"), COLUMNS.index("hi")]] = -np.inf, np.inf
    _, _, d = fused_step_ref(x, eps, unclamped, eps_uncond)
    s = min(max(np.quantile(np.abs(d), ratio), 1.0), largest)
    adapted[[COLUMNS.index("p_x"), COLUMNS.index("p_e")]] /= s
    adapted[[COLUMNS.index("lo"), COLUMNS.index("hi")]] = -1, 1
    return adapted
