"""Latent consistency models."""

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
    preserving_levels,
    recorded,
    step_count,
)
from stepfuse.samplers.schedule import NoiseSchedule
from stepfuse.samplers.table import StepTable


@recorded
def lcm(
    schedule: NoiseSchedule,
    steps: int | None = None,
    *,
    timesteps: Sequence[float] | None = None,
    original_steps: int = 50,
    prediction_type: PredictionType = "epsilon",
    clip: float | None = None,
    guidance_scale: float = 1.0,
    guidance_interval: tuple[float, float] = (0.0, 1.0),
) -> StepTable:
    """Multistep consistency sampling of latent consistency models (Luo et al., 2023, Algorithm 3).

    Args:
        schedule: As for ``ddim``, and so are the arguments not named here.
        steps: Number of network evaluations S, 1 ≤ S ≤ ``original_steps``.
        original_steps: Steps of the solver that the model was distilled with; S of these are taken.
        guidance_scale: As for ``ddim``; models distilled with guidance folded in take 1.

    Returns:
        A table of S rows, the noisiest timestep first.

    Raises:
        ValueError: As for ``ddim``, and if ``steps`` exceeds ``original_steps``, or that exceeds T.
        TypeError: If ``steps`` or ``original_steps`` is no whole number.
    """
    total = schedule.num_train_timesteps
    step_count(original_steps, total, "original_steps")
    if timesteps is not None:
        t = choose_timesteps(schedule, steps, timesteps, "leading", 0)
    else:
        solver = np.arange(original_steps, 0, -1) * (total // original_steps) - 1.0
        count = step_count(steps, original_steps)
        t = solver[np.floor(np.linspace(0, original_steps, count, endpoint=False)).astype(int)]
    a, a_prev = alphas_at(schedule, t), alphas_at(schedule, np.append(t[1:], -1.0))
    c_skip, c_out = consistency(t)
    with np.errstate(divide="ignore", invalid="ignore"):
        columns: Columns = {
            **clean_sample(prediction_type, a, clip),
            "q_x": np.sqrt(a_prev) * c_skip,
            "q_d": np.sqrt(a_prev) * c_out,
            "q_z": np.sqrt(1 - a_prev),
        }
    return build_table("lcm", schedule, t, columns, preserving_levels(a), guidance_scale, guidance_interval)
