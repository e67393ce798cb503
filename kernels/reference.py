"""The kernels' oracles: the formulas as written, in float64. Arguments come in the order of the kernels' launchers."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from stepfuse.kernels.columns import BLENDS, COLUMNS, OF_PREDICTION, OF_STATE, SECOND_LINE

Array = npt.NDArray[np.float64]


class Stepped(NamedTuple):
    """What a step gives: the next state, the history, the predicted clean sample, and two registers more."""

    x: Array
    h: Array
    x0: Array
    h2: Array
    h3: Array


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

    Examples:
        >>> table = sf.samplers.ddim(sf.NoiseSchedule.linear(), steps=4)
        >>> x, eps = sf.normal(0, (4, 8, 8)), sf.normal(1, (4, 8, 8))
        >>> x_next, h_next, x0 = sf.kernels.fused_step_ref(x, eps, table[0])
        >>> x_next.shape, x0.dtype
        ((4, 8, 8), dtype('float64'))
    """
    stepped = two_line_step_ref(x, eps, row, eps_uncond, h, z)
    return stepped.x, stepped.h, stepped.x0


def two_line_step_ref(
    x: npt.ArrayLike,
    eps: npt.ArrayLike,
    row: npt.ArrayLike,
    eps_uncond: npt.ArrayLike | None = None,
    h: npt.ArrayLike | None = None,
    z: npt.ArrayLike | None = None,
    h2: npt.ArrayLike | None = None,
    h3: npt.ArrayLike | None = None,
) -> Stepped:
    """``fused_step_ref`` with further registers, for rows with a second line.

    Args:
        x: State, any shape.
        eps: Network output, like ``x``; the conditional one if ``eps_uncond`` is given.
        row: Shape (16,) or (32,), columns as in ``stepfuse.samplers.table.COLUMNS`` and ``SECOND_LINE``.
        eps_uncond: Unconditional output, like ``x``, or None for an unguided step.
        h: History, like ``x``, or None for zeros.
        z: Standard normal noise, like ``x``, or None for zeros.
        h2: Second register, like ``x``, or None for zeros.
        h3: Third register, likewise.

    Returns:
        Arrays like ``x``, float64.

    Examples:
        >>> table = sf.samplers.unipc(sf.NoiseSchedule.linear(), steps=4)
        >>> x, eps = sf.normal(0, (4, 8, 8)), sf.normal(1, (4, 8, 8))
        >>> stepped = sf.kernels.two_line_step_ref(x, eps, table[0])
        >>> stepped[0].shape
        (4, 8, 8)
    """
    names, values = COLUMNS + SECOND_LINE, np.zeros(len(COLUMNS + SECOND_LINE))
    values[: len(np.asarray(row))] = row
    c = dict(zip(names, values, strict=True))
    x, e = np.asarray(x, dtype=np.float64), np.asarray(eps, dtype=np.float64)
    e_u = e
    if eps_uncond is not None:
        e_u = np.asarray(eps_uncond, dtype=np.float64)
        e = e_u + c["g"] * (e - e_u)
    h, h2, h3, z = (np.zeros_like(x) if a is None else np.asarray(a, dtype=np.float64) for a in (h, h2, h3, z))
    d = np.clip(c["p_x"] * x + c["p_e"] * e, c["lo"], c["hi"])
    after = c["q_x"] * x + c["q_d"] * d + c["q_e"] * e + c["q_h"] * h + c["q_z"] * z
    after += c["q_u"] * e_u + c["q_h2"] * h2 + c["q_h3"] * h3
    kept = c["u_x"] * x + c["u_d"] * d + c["u_e"] * e + c["u_h"] * h
    kept += c["u_u"] * e_u + c["u_z"] * z + c["u_h2"] * h2 + c["u_h3"] * h3
    second = c["v_x"] * x + c["v_d"] * d + c["v_e"] * e + c["v_h"] * h + c["v_h2"] * h2
    third = c["w_h"] * h + c["w_h2"] * h2 + c["w_h3"] * h3
    return Stepped(after, kept, d, second, third)


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

    Examples:
        >>> x, image = np.zeros((1, 4, 4)), np.ones((1, 4, 4))
        >>> mask = np.zeros((1, 4, 4))
        >>> mask[:, :, 2:] = 1  # the right half is sampled
        >>> known = np.stack([image, mask, np.zeros_like(x)])
        >>> state, _ = sf.kernels.keep_known_ref(x, known, level=(1.0, 0.0))
        >>> state[0, 0]
        array([1., 1., 0., 0.])
    """
    image, mask, noise = np.asarray(known, dtype=np.float64)
    signal, sigma = level
    kept = mask * np.asarray(x, dtype=np.float64) + (1 - mask) * (signal * image + sigma * noise)
    return kept, None if x0 is None else mask * np.asarray(x0, dtype=np.float64) + (1 - mask) * image


def guidance_rescale_ref(eps: npt.ArrayLike, row: npt.ArrayLike, phi: float, eps_uncond: npt.ArrayLike) -> Array:
    """The row of a guided step with p_e, q_e, u_e and v_e times phi std(e_c) / std(e) + 1 - phi.

    Lin et al. (2023), section 3.4.

    Args:
        eps: Conditional output, any shape.
        row: Shape (16,) or (32,).
        phi: 0 (off) to 1 (the blend gets the deviation of the conditional output).
        eps_uncond: Unconditional output, like ``eps``.

    Returns:
        The adapted row, of the shape of ``row``, float64.

    Examples:
        >>> row = sf.samplers.ddim(sf.NoiseSchedule.linear(), steps=4, guidance_scale=7.5)[0]
        >>> eps, eps_uncond = sf.normal(0, (4, 8, 8)), sf.normal(1, (4, 8, 8))
        >>> sf.kernels.guidance_rescale_ref(eps, row, 0.7, eps_uncond).shape
        (16,)
    """
    return adapt_guidance_ref(np.zeros_like(eps), eps, row, eps_uncond, phi=phi)


def cfg_renorm_ref(eps: npt.ArrayLike, eps_uncond: npt.ArrayLike, guidance_scale: float, patch: int) -> Array:
    """The guided prediction, scaled in each patch to the norm of the conditional one there.

    Args:
        eps: Conditional output, shape (C, H, W).
        eps_uncond: Unconditional output, like ``eps``.
        guidance_scale: g of the blend e_u + g (e_c - e_u).
        patch: Side p of a patch, all channels of p x p elements; it divides H and W.

    Returns:
        Shape (C, H, W), float64.

    Examples:
        >>> eps, eps_uncond = sf.normal(0, (16, 8, 8)), sf.normal(1, (16, 8, 8))
        >>> guided = sf.kernels.cfg_renorm_ref(eps, eps_uncond, 4.0, 2)
        >>> bool(np.isclose(np.linalg.norm(guided[:, :2, :2]), np.linalg.norm(eps[:, :2, :2])))
        True
    """
    cond, uncond = (np.asarray(one, dtype=np.float64) for one in (eps, eps_uncond))
    channels, height, width = cond.shape
    blend = uncond + guidance_scale * (cond - uncond)
    patches = channels, height // patch, patch, width // patch, patch
    of_cond, of_blend = (
        np.linalg.norm(one.reshape(patches).transpose(1, 3, 0, 2, 4).reshape(*patches[1::2], -1), axis=-1)
        for one in (cond, blend)
    )
    scale = np.divide(of_cond, of_blend, out=np.ones_like(of_blend), where=of_blend > 0)
    guided: Array = blend * scale.repeat(patch, axis=0).repeat(patch, axis=1)
    return guided


def adapt_guidance_ref(
    x: npt.ArrayLike,
    eps: npt.ArrayLike,
    row: npt.ArrayLike,
    eps_uncond: npt.ArrayLike,
    *,
    phi: float = 0.0,
    blend: str = "plain",
    eta: float = 1.0,
    norm_threshold: float = 0.0,
) -> Array:
    """The row of a guided step with its way of guidance folded in.

    Sadat et al. (2024), Fan et al. (2025), Lin et al. (2023), section 3.4; ``StepTable.adapt`` has the same by name.

    Args:
        x: State, any shape.
        eps: Conditional output, like ``x``.
        row: Shape (16,) or (32,).
        eps_uncond: Unconditional output, like ``x``.
        phi: Guidance rescale, 0 (off) to 1 (the blend gets the deviation of the conditional output).
        blend: One of ``BLENDS``.
        eta: Of the two that project: the share of what is parallel to the conditional vector.
        norm_threshold: Likewise: the longest difference; 0 for any.

    Returns:
        The adapted row, of the shape of ``row``, float64.

    Examples:
        >>> row = sf.samplers.ddim(sf.NoiseSchedule.linear(), steps=4, guidance_scale=7.5)[0]
        >>> x, eps, eps_uncond = (sf.normal(seed, (4, 8, 8)) for seed in range(3))
        >>> sf.kernels.adapt_guidance_ref(x, eps, row, eps_uncond, phi=0.7).shape
        (16,)
    """
    adapted = np.array(row, dtype=np.float64)
    x, e_c, e_u = (np.asarray(one, dtype=np.float64) for one in (x, eps, eps_uncond))
    g, p_x, p_e = (adapted[COLUMNS.index(name)] for name in ("g", "p_x", "p_e"))
    on_c, on_u, on_x = g, 1 - g, 0.0
    if blend in ("projected", "projected_clean"):
        clean = blend == "projected_clean"
        of_cond, difference = (p_x * x + p_e * e_c, p_e * (e_c - e_u)) if clean else (e_c, e_c - e_u)
        length, square = np.linalg.norm(difference), np.vdot(of_cond, of_cond)
        limit = min(1.0, norm_threshold / length) if norm_threshold > 0 and length > 0 else 1.0
        part = (eta - 1) * np.vdot(difference, of_cond) / square if square > 0 else 0.0
        scale = (g - 1 if clean else g) * limit
        on_c, on_u = (1.0 if clean else 0.0) + scale * (1 + part), (0.0 if clean else 1.0) - scale
        on_x = scale * part * p_x / p_e if clean else 0.0
    elif blend == "optimized_scale":
        on_u = (1 - g) * np.vdot(e_c, e_u) / (np.vdot(e_u, e_u) + 1e-8)
    elif blend != "plain":
        raise ValueError(f"blend must be one of {', '.join(BLENDS)}, got {blend!r}")
    factor = phi * np.std(e_c) / np.std(on_c * e_c + on_u * e_u + on_x * x) + 1 - phi if phi else 1.0
    both = COLUMNS + SECOND_LINE
    for of_state, of_prediction in zip(OF_STATE, OF_PREDICTION, strict=True):
        if both.index(of_prediction) < len(adapted):
            adapted[both.index(of_state)] += adapted[both.index(of_prediction)] * factor * on_x
            adapted[both.index(of_prediction)] *= factor * (on_c + on_u)
    adapted[COLUMNS.index("g")] = on_c / (on_c + on_u)
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
        row: Shape (16,) or (32,).
        ratio: s is this quantile of the magnitude of d, but at least 1.
        largest: The largest s, at least 1.
        eps_uncond: Unconditional output, like ``x``, or None for an unguided step.

    Returns:
        The adapted row, of the shape of ``row``, float64.

    Examples:
        >>> row = sf.samplers.ddim(sf.NoiseSchedule.linear(), steps=4)[0]
        >>> x, eps = sf.normal(0, (4, 8, 8)), sf.normal(1, (4, 8, 8))
        >>> sf.kernels.dynamic_threshold_ref(x, eps, row, 0.995, 10.0).shape
        (16,)
    """
    adapted = np.array(row, dtype=np.float64)
    unclamped = adapted.copy()
    unclamped[[COLUMNS.index("lo"), COLUMNS.index("hi")]] = -np.inf, np.inf
    d = two_line_step_ref(x, eps, unclamped, eps_uncond).x0
    s = min(max(np.quantile(np.abs(d), ratio), 1.0), largest)
    adapted[[COLUMNS.index("p_x"), COLUMNS.index("p_e")]] /= s
    adapted[[COLUMNS.index("lo"), COLUMNS.index("hi")]] = -1, 1
    return adapted
