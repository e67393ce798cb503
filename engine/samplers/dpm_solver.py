"""DPM-Solver++."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from stepfuse.samplers.coefficients import (
    Columns,
    PredictionType,
    build_table,
    clean_sample,
    preserving_levels,
    recorded,
    require_between,
)
from stepfuse.samplers.log_snr import solver_levels
from stepfuse.samplers.schedule import Float64Array, NoiseSchedule, Spacing
from stepfuse.samplers.table import StepTable


@recorded
def dpmpp_2m(
    schedule: NoiseSchedule,
    steps: int | None = None,
    *,
    timesteps: Sequence[float] | None = None,
    spacing: Spacing = "linspace",
    steps_offset: int = 0,
    prediction_type: PredictionType = "epsilon",
    clip: float | None = None,
    karras: bool = False,
    order: int = 2,
    solver_type: Literal["midpoint", "heun"] = "midpoint",
    lower_order_final: bool = True,
    final_alpha_cumprod: float = 1.0,
    guidance_scale: float = 1.0,
    guidance_interval: tuple[float, float] = (0.0, 1.0),
) -> StepTable:
    """DPM-Solver++(2M) of Lu et al. (2022b), Algorithm 2; the history is the last clean estimate.

    Args:
        schedule: As for ``ddim``, and so are the arguments not named here.
        steps: Number of network evaluations S, 1 ≤ S < T.
        spacing: As for ``ddim``, over S + 1 points of which the cleanest is left out, as diffusers does.
        karras: Noise levels of Karras et al. (2022), Eq. 5 with ρ = 7, instead of ``spacing``.
        order: 2, or 1 for DDIM's step at these levels.
        solver_type: How the estimate's slope is integrated: ``"midpoint"``, or exactly, as diffusers' ``"heun"``.
        lower_order_final: Whether the last step is of first order where S < 15. Towards a clean sample it always is.

    Returns:
        A table of S rows, the noisiest timestep first.

    Raises:
        ValueError: As for ``ddim``, and if ``steps`` reaches T without ``timesteps``, ``order`` is neither 1 nor 2,
            ``solver_type`` is neither of the two, or ``final_alpha_cumprod`` is 0.
        TypeError: If ``steps`` or ``order`` is no whole number.
    """
    t, sigmas = solver_levels(
        schedule, steps, timesteps, spacing, steps_offset, prediction_type, final_alpha_cumprod, karras=karras
    )
    a = 1 / (1 + sigmas[:-1] ** 2)
    columns: Columns = {
        **clean_sample(prediction_type, a, clip),
        **two_estimates(sigmas, order, solver_type, lower_order_final=lower_order_final),
    }
    return build_table("dpmpp_2m", schedule, t, columns, preserving_levels(a), guidance_scale, guidance_interval)


def two_estimates(
    sigmas: Float64Array, order: int, solver_type: str, *, lower_order_final: bool, eta: float = 0.0
) -> Columns:
    """The second line of the step and its history: the exact solution for an estimate that changes linearly in log-SNR.

    Args:
        sigmas: Noise over signal at each step and of the result, shape (S + 1,).
        order: As for ``dpmpp_2m``, and so are the next two.
        eta: Share of the diffusion SDE's noise, whose drift grows with it; 0 is the ODE.

    Raises:
        ValueError: If ``order`` or ``solver_type`` is none of those.
    """
    require_between("order", order, 1, 2)
    if solver_type not in ("midpoint", "heun"):
        raise ValueError(f"solver_type must be 'midpoint' or 'heun', got {solver_type!r}")
    sigma, sigma_next = sigmas[:-1], sigmas[1:]
    a, a_next = 1 / (1 + sigma**2), 1 / (1 + sigma_next**2)
    with np.errstate(divide="ignore"):
        log_step = np.log(sigma) - np.log(sigma_next)  # h, in half log-SNR
    step_ratio = np.append(np.inf, log_step[:-1] / log_step[1:])  # r; infinite makes a step of first order
    if sigma_next[-1] == 0 or (lower_order_final and len(sigma) < 15):
        step_ratio[-1] = np.inf
    if order == 1:
        step_ratio[:] = np.inf
    decay = (1 + eta) * log_step
    towards_d = -np.sqrt(a_next) * np.expm1(-decay)
    towards_slope = 0.5 * towards_d
    if solver_type == "heun":
        length = np.where(log_step == 0, 1.0, decay)  # a step of no length has no slope
        towards_slope = np.sqrt(a_next) * np.where(log_step == 0, 0.0, np.expm1(-length) / length + 1)
    kept = np.sqrt((1 - a_next) / (1 - a))
    columns: Columns = {
        "q_x": kept,
        "q_d": towards_d + towards_slope / step_ratio,
        "q_h": -towards_slope / step_ratio,
        "u_d": 1.0,
    }
    if eta > 0:  # the noise in the state decays faster, and new noise takes its place
        columns["q_x"] = np.exp(-eta * log_step) * kept
        # Two levels that are one may be rounded the wrong way round.
        columns["q_z"] = np.sqrt((1 - a_next) * -np.expm1(-2 * eta * np.maximum(log_step, 0.0)))
    return columns
