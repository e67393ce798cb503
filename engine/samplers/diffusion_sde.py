"""DPM-Solver++ on the diffusion SDE, which draws new noise at each step: what web interfaces call "SDE"."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from stepfuse.samplers.coefficients import (
    Columns,
    PredictionType,
    build_table,
    preserving_levels,
    recorded,
    require_between,
    sigmas_of,
    timesteps_of,
)
from stepfuse.samplers.dpm_solver import multistep
from stepfuse.samplers.exponential import ExponentialIntegrator
from stepfuse.samplers.forms import D, H, Update, X, Z, columns_of
from stepfuse.samplers.levels import LevelKind, LevelOptions
from stepfuse.samplers.log_snr import solver_levels
from stepfuse.samplers.probability_flow import exploding_levels, ode_levels, ode_slope
from stepfuse.samplers.schedule import Float64Array, NoiseSchedule, Spacing
from stepfuse.samplers.table import StepTable


@recorded
def dpmpp_2m_sde(
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
    order: int = 2,
    solver_type: Literal["midpoint", "heun"] = "midpoint",
    lower_order_final: bool = True,
    eta: float = 1.0,
    final_alpha_cumprod: float = 1.0,
    guidance_scale: float = 1.0,
    guidance_interval: tuple[float, float] = (0.0, 1.0),
) -> StepTable:
    """SDE-DPM-Solver++(2M) of Lu et al. (2022b): ``dpmpp_2m`` on the diffusion SDE, with new noise at each step.

    A step of length h in half log-SNR keeps the share e^(-eta h) of the noise in the state and draws the rest anew.

    Args:
        schedule: As for ``dpmpp_2m``, and so are the arguments not named here.
        steps: Number of network evaluations S, 1 ≤ S < T.
        eta: Share of the SDE's noise, 0 (``dpmpp_2m``) to 1.

    Returns:
        A table of S rows, the noisiest timestep first. The step to a clean sample adds no noise.

    Raises:
        ValueError: As for ``dpmpp_2m``, and if ``eta`` is out of bounds.
        TypeError: If ``steps`` or ``order`` is no whole number.

    Examples:
        >>> table = sf.samplers.dpmpp_2m_sde(sf.NoiseSchedule.linear(), steps=20, karras=True)
        >>> len(table), table.passes, len(table.columns)
        (20, 20, 16)
    """
    require_between("order", order, 1, 2)
    require_between("eta", eta, 0.0, 1.0)
    options = LevelOptions(levels, karras, rho, sigma_min, sigma_max, sigmas, timesteps)
    t, ratios = solver_levels(
        schedule, steps, timesteps, spacing, steps_offset, prediction_type, final_alpha_cumprod, options
    )
    solver = ExponentialIntegrator(ratios, prediction_type, clip, eta=eta)
    columns = multistep(solver, order, solver_type, falls=lower_order_final and len(t) < 15)
    a = 1 / (1 + ratios[:-1] ** 2)
    return build_table("dpmpp_2m_sde", schedule, t, columns, preserving_levels(a), guidance_scale, guidance_interval)


@recorded
def dpmpp_3m_sde(
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
    eta: float = 1.0,
    final_alpha_cumprod: float = 1.0,
    begin: int = 0,
    guidance_scale: float = 1.0,
    guidance_interval: tuple[float, float] = (0.0, 1.0),
) -> StepTable:
    """DPM-Solver++(3M) SDE of k-diffusion: ``dpmpp_2m_sde`` with a parabola through the last three estimates.

    The last two are in the registers. Slope and curvature have k-diffusion's weights: of the exact integral over the
    parabola's second-order term they take half.

    Args:
        schedule: As for ``dpmpp_2m_sde``, and so are the arguments not named here.
        steps: Number of network evaluations S, 1 ≤ S < T.
        begin: How many of the first steps are left out; the first that is left is of first order.

    Returns:
        A table of S - ``begin`` rows, the noisiest timestep first. The step to a clean sample is of first order and
        adds no noise.

    Raises:
        ValueError: As for ``dpmpp_2m_sde``, and if ``begin`` leaves no step.
        TypeError: If ``steps`` or ``begin`` is no whole number.

    Examples:
        >>> table = sf.samplers.dpmpp_3m_sde(sf.NoiseSchedule.linear(), steps=20)
        >>> len(table), table.passes, len(table.columns)
        (20, 20, 32)
    """
    require_between("eta", eta, 0.0, 1.0)
    options = LevelOptions(levels, karras, rho, sigma_min, sigma_max, sigmas, timesteps)
    t, ratios = solver_levels(
        schedule, steps, timesteps, spacing, steps_offset, prediction_type, final_alpha_cumprod, options
    )
    require_between("begin", begin, 0, len(t) - 1)
    t, ratios = t[begin:], ratios[begin:]
    columns = multistep(ExponentialIntegrator(ratios, prediction_type, clip, eta=eta), 3, "heun")
    a = 1 / (1 + ratios[:-1] ** 2)
    return build_table("dpmpp_3m_sde", schedule, t, columns, preserving_levels(a), guidance_scale, guidance_interval)


@recorded
def dpmpp_sde(
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
    eta: float = 1.0,
    begin: int = 0,
    guidance_scale: float = 1.0,
    guidance_interval: tuple[float, float] = (0.0, 1.0),
) -> StepTable:
    """DPM-Solver++ SDE of k-diffusion with r = 1/2: a step to the middle in log-SNR, then all of it with that estimate.

    The state is ``x0 + sigma z``. Both stages start from the step's first state, and in k-diffusion draw their noise
    from one Brownian path over sigma: with s the level between sigma and sigma', the noise of the whole is
    c z1 + sqrt(1 - c^2) z2, where z1 is that of the first stage, z2 is independent of it, and their correlation is
    c = sqrt((sigma - s) / (sigma - sigma')). A row draws noise of its own, so the first keeps c z1, scaled, in ``h``
    beside what is known of the second's result, and the second adds z2: the states have the same law.

    Args:
        schedule: As for ``euler``, variance-preserving alone; and so are the arguments not named here.
        steps: Number of noise levels S, 1 ≤ S ≤ T; the table has 2 S - 1 rows.
        clip: As for ``ddim``.
        eta: Share of the noise that ancestral sampling adds, 0 to 1.
        begin: How many of the first steps are left out.

    Returns:
        A table of 2 (S - ``begin``) - 1 rows, the noisiest timestep first. The step to a clean sample is a single row.

    Raises:
        ValueError: As for ``ddim``, and if ``begin`` leaves no step.
        TypeError: If ``steps`` or ``begin`` is no whole number.

    Examples:
        >>> table = sf.samplers.dpmpp_sde(sf.NoiseSchedule.linear(), steps=10)
        >>> len(table), table.passes, len(table.columns)
        (19, 19, 32)
    """
    require_between("eta", eta, 0.0, 1.0)
    options = LevelOptions(levels, karras, rho, sigma_min, sigma_max, sigmas, timesteps)
    t, sigma, init_scale = ode_levels(schedule, steps, timesteps, spacing, steps_offset, prediction_type, options)
    require_between("begin", begin, 0, len(t) - 1)
    t, sigma = t[begin:], sigma[begin:]
    if begin:
        init_scale = float(np.hypot(sigma[0], 1.0))
    middle = np.sqrt(sigma[:-1] * sigma[1:])
    updates = []
    for i, between in enumerate(middle):
        half, half_noise = _ancestral(sigma[i], between, eta)
        whole, noise = _ancestral(sigma[i], sigma[i + 1], eta)
        shared = sigma[i] / (sigma[i] + between)  # c^2
        first = half * X + (1 - half) * D + half_noise * Z
        updates.append(Update(first, h=whole * X + noise * np.sqrt(shared) * Z))
        updates.append(Update(H + (1 - whole) * D + noise * np.sqrt(1 - shared) * Z))
    updates.append(Update(D))
    visited = _alternating(sigma, middle)
    columns: Columns = {**ode_slope(prediction_type, visited, clip)[0], **columns_of(updates)}
    t = _alternating(t, timesteps_of(sigmas_of(schedule, prediction_type), middle))
    return build_table(
        "dpmpp_sde", schedule, t, columns, exploding_levels(visited), guidance_scale, guidance_interval, init_scale
    )


def _ancestral(sigma: float, after: float, eta: float) -> tuple[float, float]:
    """What is left of the noise at ``sigma``, as a share of it, and what is drawn anew, in a step to ``after``."""
    ratio = after / sigma
    drawn = eta**2 * (1 - ratio**2)  # share of the variance
    return ratio * np.sqrt(1 - drawn), after * np.sqrt(drawn)


def _alternating(ends: Float64Array, middle: Float64Array) -> Float64Array:
    """The first end, what lies behind it, the second end, and so on."""
    found = np.repeat(ends, 2)[:-1]
    found[1::2] = middle
    return found
