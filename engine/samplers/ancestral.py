"""DDPM ancestral sampling, full and respaced, and the naive baseline."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Literal

import numpy as np

from stepfuse.samplers.coefficients import (
    PredictionType,
    alphas_at,
    ancestral,
    build_table,
    choose_timesteps,
    preserving_levels,
    recorded,
)
from stepfuse.samplers.schedule import NoiseSchedule, Spacing
from stepfuse.samplers.table import StepTable


class NaiveSamplerWarning(UserWarning):
    """The sampler asked for is wrong on purpose: a baseline to compare with, not to use.

    Examples:
        >>> import warnings
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     table = sf.samplers.ddpm_strided(sf.NoiseSchedule.linear(), steps=10)
        >>> caught[0].category.__name__
        'NaiveSamplerWarning'
    """


@recorded
def ddpm(
    schedule: NoiseSchedule,
    steps: int | None = None,
    *,
    timesteps: Sequence[float] | None = None,
    spacing: Spacing = "leading",
    steps_offset: int = 0,
    prediction_type: PredictionType = "epsilon",
    clip: float | None = None,
    variance: Literal["beta", "posterior"] = "beta",
    guidance_scale: float = 1.0,
    guidance_interval: tuple[float, float] = (0.0, 1.0),
) -> StepTable:
    """DDPM ancestral sampling of Ho et al. (2020), Eq. 7, respaced as in Nichol & Dhariwal (2021), Eq. 19.

    With fewer steps than T, each β is that of the whole stretch from one chosen timestep to the next.

    Args:
        schedule: As for ``ddim``, and so are the arguments not named here.
        steps: Number of network evaluations S; S = T is the original sampler.
        variance: ``beta`` adds noise of variance β_t, ``posterior`` of β̃_t; none at t = 0. As in diffusers, a
            last timestep above 0 (``trailing``) therefore leaves noise in the result.

    Returns:
        A table of S rows, the noisiest timestep first.

    Raises:
        ValueError: As for ``ddim``.
        TypeError: If ``steps`` is no whole number.

    Examples:
        >>> table = sf.samplers.ddpm(sf.NoiseSchedule.linear(), steps=50)
        >>> len(table), table.passes, table.uses_noise
        (50, 50, True)
    """
    t = choose_timesteps(schedule, steps, timesteps, spacing, steps_offset)
    a, a_prev = alphas_at(schedule, t), alphas_at(schedule, np.append(t[1:], -1.0))
    columns = ancestral(prediction_type, t, a, a_prev, variance, clip)
    return build_table("ddpm", schedule, t, columns, preserving_levels(a), guidance_scale, guidance_interval)


@recorded
def ddpm_strided(
    schedule: NoiseSchedule,
    steps: int | None = None,
    *,
    timesteps: Sequence[float] | None = None,
    spacing: Spacing = "leading",
    steps_offset: int = 0,
    prediction_type: PredictionType = "epsilon",
    clip: float | None = None,
    variance: Literal["beta", "posterior"] = "beta",
    guidance_scale: float = 1.0,
    guidance_interval: tuple[float, float] = (0.0, 1.0),
) -> StepTable:
    """The naive baseline: rows of full DDPM at every k-th timestep. Each undoes one step's noise where k are due.

    Wrong on purpose; it shows why ``ddim`` and respaced ``ddpm`` exist.

    Args:
        schedule: As for ``ddpm``, and so are all other arguments.

    Returns:
        A table of S rows, the noisiest timestep first.

    Raises:
        ValueError: As for ``ddpm``.
        TypeError: If ``steps`` is no whole number.

    Warns:
        NaiveSamplerWarning: If any timestep is left out.

    Examples:
        >>> import warnings
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("ignore")  # it warns: wrong on purpose
        ...     table = sf.samplers.ddpm_strided(sf.NoiseSchedule.linear(), steps=50)
        >>> len(table), table.passes
        (50, 50)
    """
    t = choose_timesteps(schedule, steps, timesteps, spacing, steps_offset)
    a = alphas_at(schedule, t)
    columns = ancestral(prediction_type, t, a, alphas_at(schedule, t - 1), variance, clip)
    table = build_table("ddpm_strided", schedule, t, columns, preserving_levels(a), guidance_scale, guidance_interval)
    if len(t) < schedule.num_train_timesteps:
        warnings.warn(
            f"ddpm_strided with {len(t)} of {schedule.num_train_timesteps} steps is wrong on purpose:"
            " use ddim or ddpm for samples worth having",
            NaiveSamplerWarning,
            stacklevel=3,
        )
    return table
