"""The way back: tables that walk a sample up to the noise it comes from."""

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
    eps_from,
    next_timesteps,
    preserving_levels,
    recorded,
    require_between,
)
from stepfuse.samplers.schedule import NoiseSchedule, Spacing
from stepfuse.samplers.table import StepTable


@recorded
def ddim_inverse(
    schedule: NoiseSchedule,
    steps: int | None = None,
    *,
    timesteps: Sequence[float] | None = None,
    spacing: Spacing = "leading",
    steps_offset: int = 0,
    fixed_stride: bool = False,
    prediction_type: PredictionType = "epsilon",
    final_alpha_cumprod: float = 1.0,
    refinements: int = 0,
    guidance_scale: float = 1.0,
    guidance_interval: tuple[float, float] = (0.0, 1.0),
) -> StepTable:
    """The DDIM of the same arguments, backwards: Song et al. (2021), section 4.3, Eq. 14, solved by Euler's method.

    A DDIM step from t to s takes the noise estimate at the state of t; going back, only that of s is known, and the
    first guess takes it there. Each refinement puts the estimate at the state just found in its place: a fixed-point
    iteration whose limit is the exact inverse of the step (Pan et al., 2023). The history holds the state of s.

    Args:
        schedule: Noise levels the network was trained with, variance-preserving.
        steps: Number of DDIM steps to invert, 1 ≤ S ≤ T. May be left out where ``timesteps`` are given.
        timesteps: As for ``ddim``, the noisiest first.
        spacing: As for ``ddim``.
        steps_offset: As for ``ddim``.
        fixed_stride: As for ``ddim``, to undo steps that are made so.
        prediction_type: As for ``ddim``.
        final_alpha_cumprod: As for ``ddim``: ᾱ of the sample that is encoded.
        refinements: Further network evaluations a step, at least 0.
        guidance_scale: As for ``ddim``; above 1 a sample is seldom found again.
        guidance_interval: As for ``ddim``.

    Returns:
        A table of S (1 + refinements) rows, the cleanest timestep first.

    Raises:
        ValueError: As for ``ddim``, and if ``refinements`` is negative.
        TypeError: If ``steps`` is no whole number.

    Examples:
        >>> table = sf.samplers.ddim_inverse(sf.NoiseSchedule.linear(), steps=20)
        >>> len(table), table.passes, len(table.columns)
        (20, 20, 16)
    """
    require_between("final_alpha_cumprod", final_alpha_cumprod, 0.0, 1.0)
    if refinements < 0:
        raise ValueError(f"refinements must be at least 0, got {refinements}")
    t = choose_timesteps(schedule, steps, timesteps, spacing, steps_offset)
    prev_t = next_timesteps(schedule, t, fixed_stride=fixed_stride and timesteps is None)
    rounds = 1 + refinements
    t, prev_t = np.repeat(t[::-1], rounds), np.repeat(prev_t[::-1], rounds)
    first = np.arange(len(t)) % rounds == 0  # the state is that of prev_t; in refinements it is already that of t

    a_from, a_to = alphas_at(schedule, prev_t, final_alpha_cumprod), alphas_at(schedule, t)
    a_here = np.where(first, a_from, a_to)
    scale = np.sqrt(a_to / a_from)
    towards_eps = np.sqrt(1 - a_to) - scale * np.sqrt(1 - a_from)
    with np.errstate(divide="ignore", invalid="ignore"):
        x_to_eps, _, e_to_eps = eps_from(prediction_type, a_here, from_clipped=False)
        columns: Columns = {
            **clean_sample(prediction_type, a_here, None),
            "q_x": np.where(first, scale, 0.0) + towards_eps * x_to_eps,
            "q_e": towards_eps * e_to_eps,
            "q_h": np.where(first, 0.0, scale),
            "u_x": np.where(first & (refinements > 0), 1.0, 0.0),
            "u_h": np.where(first, 0.0, 1.0),
        }
    last = np.sqrt(a_to[-1]), np.sqrt(1 - a_to[-1])
    return build_table(
        "ddim_inverse",
        schedule,
        t,
        columns,
        preserving_levels(a_here),
        guidance_scale,
        guidance_interval,
        last_level=last,
    )
