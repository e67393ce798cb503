"""DPM-Solver++ on the diffusion SDE, which draws new noise at each step: what web interfaces call "SDE"."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from stepfuse.samplers.coefficients import (
    Columns,
    PredictionType,
    build_table,
    clean_sample,
    preserving_levels,
    recorded,
    require_between,
)
from stepfuse.samplers.dpm_solver import two_estimates
from stepfuse.samplers.log_snr import solver_levels
from stepfuse.samplers.schedule import NoiseSchedule, Spacing
from stepfuse.samplers.table import StepTable


@recorded
def dpmpp_2m_sde(
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
    """
    require_between("eta", eta, 0.0, 1.0)
    t, sigmas = solver_levels(
        schedule, steps, timesteps, spacing, steps_offset, prediction_type, final_alpha_cumprod, karras=karras
    )
    a = 1 / (1 + sigmas[:-1] ** 2)
    columns: Columns = {
        **clean_sample(prediction_type, a, clip),
        **two_estimates(sigmas, order, solver_type, lower_order_final=lower_order_final, eta=eta),
    }
    return build_table("dpmpp_2m_sde", schedule, t, columns, preserving_levels(a), guidance_scale, guidance_interval)
