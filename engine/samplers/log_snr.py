"""Timesteps and noise levels of the multistep solvers that step in log-SNR: DPM-Solver++ and UniPC."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stepfuse.samplers.coefficients import (
    TINY_ALPHA,
    choose_timesteps,
    karras_sigmas,
    require_between,
    sigmas_at,
    sigmas_of,
    step_count,
    timesteps_of,
    warn_of_late_start,
)
from stepfuse.samplers.schedule import Float64Array, NoiseSchedule, Spacing, spaced_timesteps


def solver_levels(
    schedule: NoiseSchedule,
    steps: int | None,
    timesteps: Sequence[float] | None,
    spacing: Spacing,
    steps_offset: int,
    prediction_type: str,
    final_alpha_cumprod: float,
    *,
    karras: bool,
) -> tuple[Float64Array, Float64Array]:
    """Timesteps, shape (S,), and noise over signal at each and of the result, shape (S + 1,).

    Spaced timesteps are S + 1 points of which the cleanest is left out, as in diffusers.

    Raises:
        ValueError: If there are more steps than timesteps, or ``final_alpha_cumprod`` is not within 2^-24 to 1.
    """
    total = schedule.num_train_timesteps
    if timesteps is not None or spacing == "trailing":
        t = choose_timesteps(schedule, steps, timesteps, spacing, steps_offset)
    else:
        count = step_count(steps, total - 1)
        points = spaced_timesteps(total, count + 1, spacing, steps_offset)
        warn_of_late_start(schedule, points, spacing)
        t = points[:-1]
    all_sigmas = sigmas_of(schedule, prediction_type)
    sigma = sigmas_at(all_sigmas, t)
    if karras:
        sigma = karras_sigmas(all_sigmas, len(t))
        t = timesteps_of(all_sigmas, sigma).round()
    require_between("final_alpha_cumprod", final_alpha_cumprod, TINY_ALPHA, 1.0)
    return t, np.append(sigma, np.sqrt((1 - final_alpha_cumprod) / final_alpha_cumprod))
