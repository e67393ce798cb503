"""Samplers whose states are ``x0 + sigma z``: Euler's and Heun's methods on the probability-flow ODE, and on flows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stepfuse.samplers.coefficients import (
    Columns,
    Levels,
    PredictionType,
    build_table,
    choose_timesteps,
    clean_sample,
    eps_from,
    flow_sigmas,
    recorded,
    refuse_on_flows,
    refuse_without_flow,
    sigmas_at,
    sigmas_of,
    timesteps_of,
)
from stepfuse.samplers.levels import LevelKind, LevelOptions
from stepfuse.samplers.schedule import Float64Array, NoiseSchedule, Spacing
from stepfuse.samplers.table import StepTable

Weights = tuple[Float64Array, Float64Array, Float64Array]


@recorded
def euler(
    schedule: NoiseSchedule,
    steps: int | None = None,
    *,
    timesteps: Sequence[float] | None = None,
    sigmas: Sequence[float] | None = None,
    spacing: Spacing = "linspace",
    steps_offset: int = 0,
    prediction_type: PredictionType = "epsilon",
    karras: bool = False,
    levels: LevelKind = "schedule",
    rho: float = 7.0,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    shift: float | None = None,
    shift_terminal: float | None = None,
    cfg_pp: bool = False,
    guidance_scale: float = 1.0,
    guidance_interval: tuple[float, float] = (0.0, 1.0),
) -> StepTable:
    """Euler's method: on the probability-flow ODE (Karras et al., 2022, section 3), or on a rectified flow.

    On a variance-preserving schedule the state is ``x0 + sigma z`` and the slope is the noise estimate; on a flow
    schedule it is ``(1 - sigma) x0 + sigma z`` and the slope is the network's ``v = z - x0`` (Esser et al., 2024).

    Args:
        schedule: As for ``ddim``, and so are the arguments not named here; or ``NoiseSchedule.flow(shift)``.
        steps: Number of network evaluations S, 1 ≤ S ≤ T.
        timesteps: Timesteps of one's own, strictly decreasing; they need not be whole. On a flow they are T σ, from T
            down, taken as they are, without shift.
        sigmas: Noise levels of one's own, noise over signal, strictly decreasing within the schedule; a last 0, the
            clean result, may be left out. On a flow they are σ, 1 / T to 1, and are shifted, as in diffusers.
        spacing: As for ``ddim``; ``linspace`` is not rounded. On a flow, where the levels end before the shift, in
            equal steps from 1: ``linspace`` at 1 / T, ``trailing`` at 1 / S, one step above the clean sample.
        steps_offset: As for ``ddim``; not for flows, and neither is ``prediction_type``.
        karras: The same as ``levels="karras"``.
        levels: How the noise levels lie between the ends that ``spacing`` has: ``"karras"`` as in Karras et al. (2022),
            Eq. 5; ``"exponential"`` in equal steps of the logarithm; ``"beta"`` as quantiles of the beta distribution
            with both parameters 0.6 (Lee et al., 2024); ``"lu"`` in equal steps of log-SNR (Lu et al., 2022), which is
            ``"exponential"`` here. Not with ``timesteps`` or ``sigmas``; on a flow between the ends after the shift,
            and without ``"lu"``.
        rho: ρ of Karras' levels, 0.1 to 1000.
        sigma_min: The lower end in the place of that of ``spacing``, within the schedule. Not with ``"schedule"``.
        sigma_max: The same for the higher end.
        shift: On a flow, the shift of the levels in the place of the schedule's, above 0: what a resolution asks for.
            diffusers' ``mu`` is its logarithm, or with ``time_shift_type="linear"`` itself. Not with ``timesteps``.
        shift_terminal: On a flow, the level that the last step begins at: all are stretched to end there, 0 to 1; None:
            where the shift has it. Not with ``timesteps``.
        cfg_pp: As for ``ddim``, on flows too; as ``euler_cfg_pp`` of ComfyUI, whose ``cfg`` is λ as well.

    Returns:
        A table of S rows, the noisiest timestep first.

    Raises:
        ValueError: As for ``ddim``; and if two of ``timesteps``, ``sigmas`` and ``levels`` are given, sigmas do not
            fall or leave the schedule, an end or ``rho`` is out of bounds, or an argument is given that is of the other
            kind of schedule.
        TypeError: If ``steps`` is no whole number.

    Examples:
        >>> table = sf.samplers.euler(sf.NoiseSchedule.flow(), steps=20)
        >>> len(table), table.passes, len(table.columns)
        (20, 20, 16)
    """
    options = LevelOptions(levels, karras, rho, sigma_min, sigma_max, sigmas, timesteps, shift_terminal, shift)
    if schedule.is_flow:
        refuse_on_flows(
            steps_offset=(steps_offset, 0),
            prediction_type=(prediction_type, "epsilon"),
        )
        sigma = flow_sigmas(schedule, steps, timesteps, options, spacing)
        return _flow(schedule, sigma, guidance_scale, guidance_interval, cfg_pp=cfg_pp)
    refuse_without_flow(shift=(shift, None), shift_terminal=(shift_terminal, None))
    t, sigma, init_scale = ode_levels(schedule, steps, timesteps, spacing, steps_offset, prediction_type, options)
    after = np.append(sigma[1:], 0.0)
    columns = _ode_step(prediction_type, sigma, after - sigma)
    if cfg_pp:
        columns = _renoising(prediction_type, sigma, after)
    states = exploding_levels(sigma)
    return build_table(
        "euler", schedule, t, columns, states, guidance_scale, guidance_interval, init_scale, cfg_pp=cfg_pp
    )


@recorded
def euler_ancestral(
    schedule: NoiseSchedule,
    steps: int | None = None,
    *,
    timesteps: Sequence[float] | None = None,
    sigmas: Sequence[float] | None = None,
    spacing: Spacing = "linspace",
    steps_offset: int = 0,
    prediction_type: PredictionType = "epsilon",
    karras: bool = False,
    levels: LevelKind = "schedule",
    rho: float = 7.0,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    guidance_scale: float = 1.0,
    guidance_interval: tuple[float, float] = (0.0, 1.0),
) -> StepTable:
    """Euler's method to a lower noise level than the next, and noise added back up to it: ancestral sampling.

    Of the variance at the next level, ``sigma'^2 (sigma^2 - sigma'^2) / sigma^2`` is new noise: the posterior's, as in
    Song et al. (2021, "Score-based generative modeling through SDEs"), Eq. 47.

    Args:
        schedule: As for ``euler``, variance-preserving alone; and so are the arguments not named here.
        steps: Number of network evaluations S, 1 ≤ S ≤ T.

    Returns:
        A table of S rows, the noisiest timestep first.

    Raises:
        ValueError: As for ``euler``.
        TypeError: If ``steps`` is no whole number.

    Examples:
        >>> table = sf.samplers.euler_ancestral(sf.NoiseSchedule.scaled_linear(), steps=20)
        >>> len(table), table.passes, len(table.columns)
        (20, 20, 16)
    """
    options = LevelOptions(levels, karras, rho, sigma_min, sigma_max, sigmas, timesteps)
    t, sigma, init_scale = ode_levels(schedule, steps, timesteps, spacing, steps_offset, prediction_type, options)
    after = np.append(sigma[1:], 0.0)
    noise = after * np.sqrt(sigma**2 - after**2) / sigma
    below = after**2 / sigma  # sqrt(after^2 - noise^2)
    columns = {**_ode_step(prediction_type, sigma, below - sigma), "q_z": noise}
    return build_table(
        "euler_ancestral", schedule, t, columns, exploding_levels(sigma), guidance_scale, guidance_interval, init_scale
    )


@recorded
def heun(
    schedule: NoiseSchedule,
    steps: int | None = None,
    *,
    timesteps: Sequence[float] | None = None,
    sigmas: Sequence[float] | None = None,
    spacing: Spacing = "linspace",
    steps_offset: int = 0,
    prediction_type: PredictionType = "epsilon",
    clip: float | None = None,
    karras: bool = False,
    levels: LevelKind = "schedule",
    rho: float = 7.0,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    shift: float | None = None,
    shift_terminal: float | None = None,
    guidance_scale: float = 1.0,
    guidance_interval: tuple[float, float] = (0.0, 1.0),
) -> StepTable:
    """Heun's second-order method on the probability-flow ODE (Karras et al., 2022, Algorithm 1), or on a flow.

    States and slopes are those of ``euler``. An interval is two rows: Euler to its end, then the average of both
    slopes, for which the history carries the state and half of the first slope. The last interval, to sigma = 0, is
    Euler alone.

    Args:
        schedule: As for ``euler``, and so are the arguments not named here.
        steps: Number of noise levels S; the table has 2 S - 1 rows.
        clip: As for ``ddim``; not for flows.

    Returns:
        A table of 2 S - 1 rows, the noisiest timestep first.

    Raises:
        ValueError: As for ``euler``, and if ``clip`` is not above 0.
        TypeError: If ``steps`` is no whole number.

    Examples:
        >>> table = sf.samplers.heun(sf.NoiseSchedule.linear(), steps=10)
        >>> len(table), table.passes, len(table.columns)
        (19, 19, 16)
    """
    options = LevelOptions(levels, karras, rho, sigma_min, sigma_max, sigmas, timesteps, shift_terminal, shift)
    if schedule.is_flow:
        refuse_on_flows(
            steps_offset=(steps_offset, 0),
            prediction_type=(prediction_type, "epsilon"),
            clip=(clip, None),
        )
        sigma = flow_sigmas(schedule, steps, timesteps, options, spacing)
        t, init_scale = sigma * schedule.num_train_timesteps, 1.0
    else:
        refuse_without_flow(shift=(shift, None), shift_terminal=(shift_terminal, None))
        t, sigma, init_scale = ode_levels(schedule, steps, timesteps, spacing, steps_offset, prediction_type, options)

    # Row 2 i is Euler's at sigma[i], row 2 i + 1 the correction at sigma[i + 1]; dt is that interval's width in both.
    predicts = np.arange(2 * len(t) - 1) % 2 == 0
    t, sigma_here = np.repeat(t, 2)[1:], np.repeat(sigma, 2)[1:]
    dt = np.repeat(np.append(np.diff(sigma), -sigma[-1]), 2)[:-1]
    step = np.where(predicts, dt, dt / 2)
    corrected = predicts & (np.arange(len(t)) < len(t) - 1)
    states = (1 - sigma_here, sigma_here) if schedule.is_flow else exploding_levels(sigma_here)
    clean, slope = _flow_slope(sigma_here) if schedule.is_flow else ode_slope(prediction_type, sigma_here, clip)
    x_to_slope, d_to_slope, e_to_slope = slope
    columns: Columns = {
        **clean,
        "q_x": np.where(predicts, 1.0, 0.0) + step * x_to_slope,
        "q_d": step * d_to_slope,
        "q_e": step * e_to_slope,
        "q_h": np.where(predicts, 0.0, 1.0),
        "u_x": np.where(corrected, 1 + step / 2 * x_to_slope, 0.0),
        "u_d": np.where(corrected, step / 2 * d_to_slope, 0.0),
        "u_e": np.where(corrected, step / 2 * e_to_slope, 0.0),
    }
    return build_table("heun", schedule, t, columns, states, guidance_scale, guidance_interval, init_scale)


def ode_levels(
    schedule: NoiseSchedule,
    steps: int | None,
    timesteps: Sequence[float] | None,
    spacing: Spacing,
    steps_offset: int,
    prediction_type: PredictionType,
    options: LevelOptions,
) -> tuple[Float64Array, Float64Array, float]:
    """Timesteps, noise levels, and the scale of the initial state."""
    total, all_sigmas = schedule.num_train_timesteps, sigmas_of(schedule, prediction_type)
    bounds = float(all_sigmas[0]), float(all_sigmas[-1])
    given = options.own(steps, *bounds)
    if given is not None:
        t, sigma = timesteps_of(all_sigmas, given), given
    else:
        t = choose_timesteps(schedule, steps, timesteps, spacing, steps_offset)
        if timesteps is None and spacing == "linspace":
            t = np.linspace(0, total - 1, len(t))[::-1]
        sigma = sigmas_at(all_sigmas, t)
    if options.follow_rule:
        last = t[-1]
        if spacing == "trailing":  # as diffusers counts, with one more at -1 if rounding has it so
            last = np.round(np.arange(total, 0, -total / len(t)))[-1] - 1
        ends = float(np.interp(last, np.arange(total), all_sigmas)), float(sigma[0])
        sigma = options.between(ends, bounds, len(t))
        t = timesteps_of(all_sigmas, sigma)
    return t, sigma, float(sigma[0] if spacing in ("linspace", "trailing") else np.hypot(sigma[0], 1.0))


def exploding_levels(sigma: Float64Array) -> Levels:
    """Signal and noise of states ``x0 + sigma z``, whose variance grows with the noise."""
    return np.ones_like(sigma), sigma


def ode_slope(prediction_type: PredictionType, sigma: Float64Array, clip: float | None) -> tuple[Columns, Weights]:
    """Input scale and line 1 at these noise levels, and the ODE's slope as weights of (x, d, e)."""
    scale = 1 / np.sqrt(1 + sigma**2)  # the network's own state is scale * x
    clean = clean_sample(prediction_type, scale**2, clip)
    clean["p_x"] = scale * np.asarray(clean["p_x"])
    # The slope is the noise estimate. As (x - d) / sigma it would lose all digits where sigma is small beside x.
    x_to_slope, d_to_slope, e_to_slope = eps_from(prediction_type, scale**2, from_clipped=clip is not None)
    return {**clean, "s": scale}, (scale * x_to_slope, d_to_slope, e_to_slope)


def _flow_slope(sigma: Float64Array) -> tuple[Columns, Weights]:
    """The same on a flow, whose network predicts the slope."""
    zero = np.zeros_like(sigma)
    return {"p_x": 1.0, "p_e": -sigma}, (zero, zero, zero + 1)


def _ode_step(prediction_type: PredictionType, sigma: Float64Array, dt: Float64Array) -> Columns:
    """Euler's step of width ``dt`` at each noise level."""
    clean, (x_to_slope, d_to_slope, e_to_slope) = ode_slope(prediction_type, sigma, None)
    return {**clean, "q_x": 1 + dt * x_to_slope, "q_d": dt * d_to_slope, "q_e": dt * e_to_slope}


def _renoising(prediction_type: PredictionType, sigma: Float64Array, after: Float64Array) -> Columns:
    """Euler's step to ``after`` as the clean sample and noise of that level: the same but for rounding."""
    clean, (x_to_slope, _, e_to_slope) = ode_slope(prediction_type, sigma, None)
    return {**clean, "q_x": after * x_to_slope, "q_d": 1.0, "q_e": after * e_to_slope}


def _flow(
    schedule: NoiseSchedule,
    sigma: Float64Array,
    guidance_scale: float,
    guidance_interval: tuple[float, float],
    *,
    cfg_pp: bool,
) -> StepTable:
    after = np.append(sigma[1:], 0.0)
    columns: Columns = {"p_x": 1.0, "p_e": -sigma, "q_x": 1.0, "q_e": after - sigma}
    if cfg_pp:  # as the clean sample and noise of the next level, the same but for rounding
        columns |= {"q_x": after, "q_d": 1 - after, "q_e": after * (1 - sigma)}
    t, states = sigma * schedule.num_train_timesteps, (1 - sigma, sigma)
    return build_table("euler", schedule, t, columns, states, guidance_scale, guidance_interval, cfg_pp=cfg_pp)
