"""The midpoint method on the probability-flow ODE, over the logarithm of the noise: what is called KDPM2."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stepfuse.samplers.coefficients import (
    Columns,
    Levels,
    PredictionType,
    build_table,
    recorded,
    sigmas_of,
    timesteps_of,
)
from stepfuse.samplers.forms import D, E, H, Update, X, Z, columns_of
from stepfuse.samplers.levels import LevelKind, LevelOptions
from stepfuse.samplers.probability_flow import exploding_levels, ode_levels, ode_slope
from stepfuse.samplers.schedule import Float64Array, NoiseSchedule, Spacing
from stepfuse.samplers.table import StepTable


@recorded
def kdpm2(
    schedule: NoiseSchedule,
    steps: int | None = None,
    *,
    timesteps: Sequence[float] | None = None,
    sigmas: Sequence[float] | None = None,
    spacing: Spacing = "linspace",
    steps_offset: int = 0,
    prediction_type: PredictionType = "epsilon",
    karras: bool = False,
    levels: LevelKind = "schedule",
    rho: float = 7.0,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    guidance_scale: float = 1.0,
    guidance_interval: tuple[float, float] = (0.0, 1.0),
) -> StepTable:
    """DPM-Solver-2 of Lu et al. (2022a), Algorithm 1, on states ``x0 + sigma z``, as k-diffusion's ``sample_dpm_2``.

    An interval is two rows: Euler to the geometric mean of its noise levels, then a step over all of it, from its
    first state, which the history carries, with the slope found there. The last interval, to sigma = 0, is Euler alone.

    Args:
        schedule: As for ``euler``, variance-preserving alone; and so are the arguments not named here.
        steps: Number of noise levels S, 1 ≤ S ≤ T; the table has 2 S - 1 rows.
        levels: As for ``euler``; timesteps of Karras' levels are rounded, as diffusers does it.

    Returns:
        A table of 2 S - 1 rows, the noisiest timestep first.

    Raises:
        ValueError: As for ``euler``.
        TypeError: If ``steps`` is no whole number.

    Examples:
        >>> table = sf.samplers.kdpm2(sf.NoiseSchedule.linear(), steps=10)
        >>> len(table), table.passes, len(table.columns)
        (19, 19, 16)
    """
    options = LevelOptions(levels, karras, rho, sigma_min, sigma_max, sigmas, timesteps)
    t, sigma, init_scale = ode_levels(schedule, steps, timesteps, spacing, steps_offset, prediction_type, options)
    rows = _rows(
        schedule,
        prediction_type,
        t.round() if options.kind == "karras" else t,
        sigma,
        sigma[1:],
        np.zeros_like(sigma[1:]),
    )
    return build_table("kdpm2", schedule, *rows, guidance_scale, guidance_interval, init_scale)


@recorded
def kdpm2_ancestral(
    schedule: NoiseSchedule,
    steps: int | None = None,
    *,
    timesteps: Sequence[float] | None = None,
    sigmas: Sequence[float] | None = None,
    spacing: Spacing = "linspace",
    steps_offset: int = 0,
    prediction_type: PredictionType = "epsilon",
    karras: bool = False,
    levels: LevelKind = "schedule",
    rho: float = 7.0,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    guidance_scale: float = 1.0,
    guidance_interval: tuple[float, float] = (0.0, 1.0),
) -> StepTable:
    """``kdpm2`` to a lower noise level than the next, and noise added back up to it, as ``euler_ancestral`` does.

    The geometric mean of this level and the lower one is the next level itself: a step is Euler to there, and from
    its first state to the lower level with the slope found there.

    Args:
        schedule: As for ``kdpm2``, and so are all arguments.

    Returns:
        A table of 2 S - 1 rows, the noisiest timestep first.

    Raises:
        ValueError: As for ``euler``.
        TypeError: If ``steps`` is no whole number.

    Examples:
        >>> table = sf.samplers.kdpm2_ancestral(sf.NoiseSchedule.linear(), steps=10)
        >>> len(table), table.passes, len(table.columns)
        (19, 19, 16)
    """
    options = LevelOptions(levels, karras, rho, sigma_min, sigma_max, sigmas, timesteps)
    t, sigma, init_scale = ode_levels(schedule, steps, timesteps, spacing, steps_offset, prediction_type, options)
    here, after = sigma[:-1], sigma[1:]
    noise = after * np.sqrt(here**2 - after**2) / here
    rows = _rows(schedule, prediction_type, t.round() if options.kind == "karras" else t, sigma, after**2 / here, noise)
    return build_table("kdpm2_ancestral", schedule, *rows, guidance_scale, guidance_interval, init_scale)


def _rows(
    schedule: NoiseSchedule,
    prediction_type: PredictionType,
    t: Float64Array,
    sigma: Float64Array,
    below: Float64Array,
    noise: Float64Array,
) -> tuple[Float64Array, Columns, Levels]:
    """Timesteps, columns and levels of the rows.

    Args:
        schedule: The levels that the network was trained with.
        prediction_type: As for ``ddim``.
        t: Timesteps, shape (S,).
        sigma: Noise levels, shape (S,).
        below: Where each interval but the last leads without new noise, shape (S - 1,).
        noise: New noise at the end of each, shape (S - 1,).
    """
    middle = np.sqrt(sigma[:-1] * below)
    visited = _alternating(sigma, middle)
    line_1, in_slope = ode_slope(prediction_type, visited, None)
    slopes = [x * X + d * D + e * E for x, d, e in zip(*in_slope, strict=True)]
    updates: list[Update] = []
    for i in range(len(middle)):
        updates.append(Update(X + (middle[i] - sigma[i]) * slopes[2 * i], h=X))
        updates.append(Update(H + (below[i] - sigma[i]) * slopes[2 * i + 1] + noise[i] * Z))
    updates.append(Update(X - sigma[-1] * slopes[-1]))
    between = timesteps_of(sigmas_of(schedule, prediction_type), middle)
    columns: Columns = {**line_1, **columns_of(updates)}
    return _alternating(t, between), columns, exploding_levels(visited)


def _alternating(ends: Float64Array, middle: Float64Array) -> Float64Array:
    """The first end, what lies behind it, the second end, and so on."""
    found = np.repeat(ends, 2)[:-1]
    found[1::2] = middle
    return found
