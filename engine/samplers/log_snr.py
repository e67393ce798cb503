"""Timesteps and noise levels of the solvers that step in log-SNR: DPM-Solver++ and UniPC."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stepfuse.samplers.coefficients import (
    TINY_ALPHA,
    choose_timesteps,
    karras_sigmas,
    match_count,
    require_between,
    sigmas_at,
    sigmas_of,
    step_count,
    timesteps_of,
    warn_of_late_start,
)
from stepfuse.samplers.schedule import Float64Array, NoiseSchedule, Spacing, explicit_timesteps, spaced_timesteps

# Levels whose logarithms are nearer than this are one level, rounded twice: no step lies between them.
SAME_LEVEL = 1e-8


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


def flow_levels(
    schedule: NoiseSchedule, steps: int | None, timesteps: Sequence[float] | None
) -> tuple[Float64Array, Float64Array]:
    """Timesteps, shape (S,), and noise at each and of the clean result, shape (S + 1,), on a flow.

    As in diffusers the timesteps are whole, and pure noise, at which log-SNR is infinite, gives way to a level a
    millionth below it. Levels are rounded to float32 as they are there: so near to pure noise that is what log-SNR is.
    """
    total, shift = schedule.num_train_timesteps, schedule.shift or 1.0
    if timesteps is not None:
        t = explicit_timesteps(total + 1, timesteps)
        match_count(steps, len(t))
        sigma = np.minimum(t / total, 1 - 1e-6)
    else:
        sigma = np.linspace(1.0, 1.0 / total, step_count(steps, total) + 1)[:-1]
        sigma = np.minimum(shift * sigma / (1 + (shift - 1) * sigma), 1 - 1e-6)
        t = np.trunc(sigma * total)
    return t, np.append(np.float32(sigma).astype(np.float64), 0.0)
