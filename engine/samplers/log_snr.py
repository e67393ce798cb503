"""Timesteps and noise levels of the solvers that step in log-SNR: DPM-Solver++ and UniPC."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stepfuse.samplers.coefficients import (
    TINY_ALPHA,
    choose_timesteps,
    flow_ramp,
    match_count,
    require_between,
    sigmas_at,
    sigmas_of,
    step_count,
    timesteps_of,
    warn_of_late_start,
)
from stepfuse.samplers.levels import LevelOptions
from stepfuse.samplers.schedule import Float64Array, NoiseSchedule, Spacing, explicit_timesteps, spaced_timesteps

# Of t, before its whole part is taken: the noisiest level is that of T - 1 but for rounding.
_HARDLY = 1e-6
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
    options: LevelOptions,
) -> tuple[Float64Array, Float64Array]:
    """Timesteps, shape (S,), and noise over signal at each and of the result, shape (S + 1,).

    Spaced timesteps are S + 1 points of which the cleanest is left out, as in diffusers. Those of other levels are
    whole numbers too: the nearest, or with ``"exponential"`` and ``"beta"``, as in diffusers, the next below.

    Raises:
        ValueError: If there are more steps than timesteps, ``final_alpha_cumprod`` is not within 2^-24 to 1 or
            below it with ``sigmas`` that end at 0, or the levels of ``options`` do not lie within the schedule.
    """
    if options.follow_spacing:
        total = schedule.num_train_timesteps
        if timesteps is not None or spacing == "trailing":
            t = choose_timesteps(schedule, steps, timesteps, spacing, steps_offset)
        else:
            points = spaced_timesteps(total, step_count(steps, total - 1) + 1, spacing, steps_offset)
            warn_of_late_start(schedule, points, spacing)
            t = points[:-1]
        sigma = sigmas_at(sigmas_of(schedule, prediction_type), t)
    else:
        t, sigma = _chosen_levels(schedule, steps, spacing, prediction_type, options)
    require_between("final_alpha_cumprod", final_alpha_cumprod, TINY_ALPHA, 1.0)
    if options.end_clean and final_alpha_cumprod != 1:
        raise ValueError(f"final_alpha_cumprod must be 1 with sigmas that end at 0, got {final_alpha_cumprod}")
    return t, np.append(sigma, np.sqrt((1 - final_alpha_cumprod) / final_alpha_cumprod))


def _chosen_levels(
    schedule: NoiseSchedule, steps: int | None, spacing: Spacing, prediction_type: str, options: LevelOptions
) -> tuple[Float64Array, Float64Array]:
    all_sigmas = sigmas_of(schedule, prediction_type)
    ends = float(all_sigmas[0]), float(all_sigmas[-1])
    sigma = options.own(steps, *ends)
    if sigma is None:
        total = schedule.num_train_timesteps
        sigma = options.between(ends, ends, step_count(steps, total if spacing == "trailing" else total - 1))
    t = timesteps_of(all_sigmas, sigma)
    return np.floor(t + _HARDLY) if options.kind in ("exponential", "beta") else t.round(), sigma


def flow_levels(
    schedule: NoiseSchedule,
    steps: int | None,
    timesteps: Sequence[float] | None,
    options: LevelOptions,
    spacing: str,
    *,
    of_signal: bool = False,
) -> tuple[Float64Array, Float64Array]:
    """Timesteps, shape (S,), and noise at each and of the clean result, shape (S + 1,), on a flow.

    With ``spacing="linspace"`` S + 1 levels before the shift lead from 1 to 1 / T, without the last, or with
    ``of_signal`` the signal does, without its first. As in diffusers the timesteps are whole, and pure noise, at which
    log-SNR is infinite, gives way to a level a millionth below it. Levels are rounded to float32 as they are there: so
    near to pure noise that is what log-SNR is.
    """
    total = schedule.num_train_timesteps
    if timesteps is not None:
        t = explicit_timesteps(total + 1, timesteps)
        match_count(steps, len(t))
        sigma = np.minimum(t / total, 1 - 1e-6)
    else:
        given = options.own(steps, 1.0 / total, 1.0)
        if given is None:
            count = step_count(steps, total)
            if spacing == "linspace":
                ramp = np.linspace(1.0, 1.0 / total, count + 1)
                given = (1.0 - ramp[:0:-1]) if of_signal else ramp[:-1]
            else:
                given = flow_ramp(count, spacing, 1.0 / total)
        sigma = np.minimum(options.shifted(given, schedule), 1 - 1e-6)
        t = np.trunc(sigma * total)
    return t, np.append(np.float32(sigma).astype(np.float64), 0.0)
