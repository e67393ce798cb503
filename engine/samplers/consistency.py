"""Latent consistency models, and trajectory consistency models."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stepfuse.samplers.coefficients import (
    Columns,
    PredictionType,
    alphas_at,
    build_table,
    choose_timesteps,
    clean_sample,
    consistency,
    flow_sigmas,
    implicit,
    preserving_levels,
    recorded,
    refuse_on_flows,
    refuse_without_flow,
    require_between,
    step_count,
)
from stepfuse.samplers.levels import LevelKind, LevelOptions
from stepfuse.samplers.schedule import Float64Array, NoiseSchedule, Spacing
from stepfuse.samplers.table import StepTable

_ORIGINAL_STEPS = 50


@recorded
def lcm(
    schedule: NoiseSchedule,
    steps: int | None = None,
    *,
    timesteps: Sequence[float] | None = None,
    sigmas: Sequence[float] | None = None,
    spacing: Spacing | None = None,
    original_steps: int = _ORIGINAL_STEPS,
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
    """Multistep consistency sampling of latent consistency models (Luo et al., 2023, Algorithm 3), or on a flow.

    On a flow the network's estimate of the clean sample is taken as it is, and noised to the next level.

    Args:
        schedule: As for ``ddim``, and so are the arguments not named here; or ``NoiseSchedule.flow(shift)``.
        steps: Number of network evaluations S, 1 ≤ S ≤ ``original_steps``; on a flow 1 ≤ S ≤ T.
        timesteps: As for ``ddim``; on a flow as for ``euler``, and so are the arguments that choose noise levels, which
            are for flows alone.
        original_steps: Steps of the solver that the model was distilled with; S of these are taken. Not for flows, and
            neither are ``prediction_type`` and ``clip``.
        guidance_scale: As for ``ddim``; models distilled with guidance folded in take 1.

    Returns:
        A table of S rows, the noisiest timestep first.

    Raises:
        ValueError: As for ``ddim``, and if ``steps`` exceeds ``original_steps``, or that exceeds T, or an argument is
            given that is of the other kind of schedule; on a flow as for ``euler``.
        TypeError: If ``steps`` or ``original_steps`` is no whole number.

    Examples:
        >>> table = sf.samplers.lcm(sf.NoiseSchedule.scaled_linear(), steps=4)
        >>> len(table), table.passes, len(table.columns)
        (4, 4, 16)
    """
    options = LevelOptions(levels, karras, rho, sigma_min, sigma_max, sigmas, timesteps, shift_terminal, shift)
    if schedule.is_flow:
        refuse_on_flows(
            original_steps=(original_steps, _ORIGINAL_STEPS),
            prediction_type=(prediction_type, "epsilon"),
            clip=(clip, None),
        )
        sigma = flow_sigmas(schedule, steps, timesteps, options, spacing or "linspace")
        after = np.append(sigma[1:], 0.0)
        columns: Columns = {"p_x": 1.0, "p_e": -sigma, "q_d": 1 - after, "q_z": after}
        t, visited = sigma * schedule.num_train_timesteps, (1 - sigma, sigma)
        return build_table("lcm", schedule, t, columns, visited, guidance_scale, guidance_interval)
    refuse_without_flow(
        sigmas=(sigmas, None),
        spacing=(spacing, None),
        karras=(karras, False),
        levels=(levels, "schedule"),
        shift=(shift, None),
        shift_terminal=(shift_terminal, None),
    )
    t = _distilled_timesteps(schedule, steps, timesteps, original_steps)
    a, a_prev = alphas_at(schedule, t), alphas_at(schedule, np.append(t[1:], -1.0))
    c_skip, c_out = consistency(t)
    with np.errstate(divide="ignore", invalid="ignore"):
        columns = {
            **clean_sample(prediction_type, a, clip),
            "q_x": np.sqrt(a_prev) * c_skip,
            "q_d": np.sqrt(a_prev) * c_out,
            "q_z": np.sqrt(1 - a_prev),
        }
    return build_table("lcm", schedule, t, columns, preserving_levels(a), guidance_scale, guidance_interval)


@recorded
def tcd(
    schedule: NoiseSchedule,
    steps: int | None = None,
    *,
    timesteps: Sequence[float] | None = None,
    original_steps: int = _ORIGINAL_STEPS,
    prediction_type: PredictionType = "epsilon",
    eta: float = 0.3,
    final_alpha_cumprod: float = 1.0,
    guidance_scale: float = 1.0,
    guidance_interval: tuple[float, float] = (0.0, 1.0),
) -> StepTable:
    """Strategic stochastic sampling of trajectory consistency models (Zheng et al., 2024).

    A step goes down to ``(1 - eta)`` times the next timestep without noise, as DDIM does, and from there back up to the
    next timestep by noise.

    Args:
        schedule: As for ``ddim``, and so are the arguments not named here.
        steps: As for ``lcm``, and so is ``original_steps``.
        eta: γ of the paper, 0 (deterministic) to 1 (down to the first timestep and back).
        final_alpha_cumprod: As for ``ddim``; diffusers' class always ends at the schedule's first.
        guidance_scale: As for ``lcm``.

    Returns:
        A table of S rows, the noisiest timestep first.

    Raises:
        ValueError: As for ``lcm``, and if ``eta`` or ``final_alpha_cumprod`` is not within 0 to 1.
        TypeError: As for ``lcm``.

    Examples:
        >>> table = sf.samplers.tcd(sf.NoiseSchedule.scaled_linear(), steps=4)
        >>> len(table), table.passes, len(table.columns)
        (4, 4, 16)
    """
    require_between("eta", eta, 0.0, 1.0)
    require_between("final_alpha_cumprod", final_alpha_cumprod, 0.0, 1.0)
    t = _distilled_timesteps(schedule, steps, timesteps, original_steps)
    lowest = np.floor(np.float32(1 - eta) * np.float32(t[1:]))  # rounded in float32 as in diffusers
    a, a_lowest = alphas_at(schedule, t), alphas_at(schedule, np.append(lowest, -1.0), final_alpha_cumprod)
    kept = np.append(a[1:] / a_lowest[:-1], 1.0)  # of the signal on the way up
    columns = implicit(prediction_type, a, a_lowest, 0.0, None, clipped_eps=False)
    columns |= {name: np.sqrt(kept) * np.asarray(columns[name]) for name in ("q_x", "q_d", "q_e")}
    columns["q_z"] = np.sqrt(1 - kept)
    return build_table("tcd", schedule, t, columns, preserving_levels(a), guidance_scale, guidance_interval)


def _distilled_timesteps(
    schedule: NoiseSchedule, steps: int | None, timesteps: Sequence[float] | None, original_steps: int
) -> Float64Array:
    """The caller's timesteps if there are any, else ``steps`` of those that a model was distilled with."""
    total = schedule.num_train_timesteps
    step_count(original_steps, total, "original_steps")
    if timesteps is not None:
        return choose_timesteps(schedule, steps, timesteps, "leading", 0)
    solver = np.arange(original_steps, 0, -1) * (total // original_steps) - 1.0
    count = step_count(steps, original_steps)
    chosen: Float64Array = solver[np.floor(np.linspace(0, original_steps, count, endpoint=False)).astype(int)]
    return chosen
