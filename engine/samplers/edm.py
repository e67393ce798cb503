"""Samplers of EDM schedules, whose states are ``x0 + sigma z`` at noise levels of any kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from stepfuse.samplers.coefficients import Columns, recorded, require_between, step_count
from stepfuse.samplers.edm_levels import edm_of, edm_table, network_columns
from stepfuse.samplers.forms import H2, D, H, Update, X, columns_of
from stepfuse.samplers.levels import LevelKind, LevelOptions
from stepfuse.samplers.schedule import EdmLevels, Float64Array, NoiseSchedule
from stepfuse.samplers.table import StepTable

EdmPrediction = Literal["epsilon", "v_prediction"]


@recorded
def edm_euler(
    schedule: NoiseSchedule,
    steps: int | None = None,
    *,
    sigmas: Sequence[float] | None = None,
    prediction_type: EdmPrediction = "epsilon",
    karras: bool = False,
    levels: LevelKind = "schedule",
    rho: float = 7.0,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    final_sigma: float = 0.0,
    guidance_scale: float = 1.0,
    guidance_interval: tuple[float, float] = (0.0, 1.0),
) -> StepTable:
    """Euler's method on the probability-flow ODE of an EDM model (Karras et al., 2022, section 3).

    Args:
        schedule: ``NoiseSchedule.edm(...)``.
        steps: Number of network evaluations S, 1 ≤ S ≤ T.
        sigmas: As for ``euler``, and so are ``karras``, ``rho``, ``sigma_min`` and ``sigma_max``.
        prediction_type: Sign of the network's output, as in ``NoiseSchedule.edm``.
        levels: As for ``euler``, between the schedule's ends; ``"schedule"`` is ``"karras"``, of Eq. 5, unless
            ``sigmas`` are given.
        final_sigma: Noise level of the result, 0 to the schedule's least.
        guidance_scale: As for ``ddim``.
        guidance_interval: As for ``ddim``, over the logarithm of the noise level.

    Returns:
        A table of S rows, the noisiest level first.

    Raises:
        ValueError: If a bound is broken, the schedule is no EDM schedule, or options of the noise levels exclude each
            other, as for ``euler``.
        TypeError: If ``steps`` is no whole number.

    Examples:
        >>> table = sf.samplers.edm_euler(sf.NoiseSchedule.edm(), steps=10)
        >>> len(table), table.passes, len(table.columns)
        (10, 10, 16)
    """
    edm, options = edm_of(schedule), _options(levels, rho, sigma_min, sigma_max, sigmas, karras=karras)
    sigma = _levels(schedule, edm, steps, final_sigma, options)
    ratio = sigma[1:] / sigma[:-1]
    columns = {**network_columns(edm, sigma[:-1], prediction_type), "q_x": ratio, "q_d": 1 - ratio}
    return edm_table("edm_euler", schedule, edm, sigma, columns, guidance_scale, guidance_interval)


@recorded
def edm_dpmpp_2m(
    schedule: NoiseSchedule,
    steps: int | None = None,
    *,
    sigmas: Sequence[float] | None = None,
    prediction_type: EdmPrediction = "epsilon",
    karras: bool = False,
    levels: LevelKind = "schedule",
    rho: float = 7.0,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    final_sigma: float = 0.0,
    order: int = 2,
    solver_type: Literal["midpoint", "heun"] = "midpoint",
    lower_order_final: bool = True,
    begin: int = 0,
    guidance_scale: float = 1.0,
    guidance_interval: tuple[float, float] = (0.0, 1.0),
) -> StepTable:
    """DPM-Solver++ of Lu et al. (2022b) on an EDM schedule: clean estimates are extrapolated over log noise.

    Args:
        schedule: As for ``edm_euler``, and so are the arguments not named here.
        order: Estimates that are extrapolated from, 1 to 3; the first steps have fewer. Earlier ones are in the
            history.
        solver_type: As for ``dpmpp_2m``, of steps of second order.
        lower_order_final: Whether the order falls to 1 over the last steps where S < 15. Towards a clean sample the
            last step always is of first order.
        begin: How many of the first steps are left out; the first that is left is of first order.

    Returns:
        A table of S - ``begin`` rows, the noisiest level first.

    Raises:
        ValueError: As for ``edm_euler``, and if ``order`` is not 1 to 3, ``solver_type`` neither of the two, or
            ``begin`` leaves no step.
        TypeError: If ``steps``, ``order`` or ``begin`` is no whole number.

    Examples:
        >>> table = sf.samplers.edm_dpmpp_2m(sf.NoiseSchedule.edm(), steps=10)
        >>> len(table), table.passes, len(table.columns)
        (10, 10, 16)
    """
    require_between("order", order, 1, 3)
    if solver_type not in ("midpoint", "heun"):
        raise ValueError(f"solver_type must be 'midpoint' or 'heun', got {solver_type!r}")
    edm, options = edm_of(schedule), _options(levels, rho, sigma_min, sigma_max, sigmas, karras=karras)
    sigma = _levels(schedule, edm, steps, final_sigma, options)
    count = len(sigma) - 1
    require_between("begin", begin, 0, count - 1)
    falls = lower_order_final and count < 15
    sigma = sigma[begin:]
    with np.errstate(divide="ignore"):
        length = -np.diff(np.log(sigma))  # h, in half log-SNR
    updates = []
    for i, h in enumerate(length.tolist()):
        now = min(order, i + 1, len(length) - i if falls else order)
        rest = float(sigma[i + 1] / sigma[i])
        after = rest * X + (1 - rest) * D
        if now > 1 and 0 < h < np.inf:  # a step of no length, or towards a clean sample, is of first order
            midpoint = now == 2 and solver_type == "midpoint"
            on_slope = 0.5 * (1 - rest) if midpoint else float(np.expm1(-h) / h + 1)
            slope = float(h / length[i - 1]) * (D - H)
            if now == 3:
                before = float(h / length[i - 2]) * (H - H2)
                ratio, ratio_before = float(length[i - 1] / h), float(length[i - 2] / h)
                bend = 1 / (ratio + ratio_before) * (slope - before)
                after -= float((np.expm1(-h) + h) / h**2 - 0.5) * bend
                slope += ratio * bend
            after += on_slope * slope
        updates.append(Update(after, h=D, h2=H))
    columns: Columns = {**network_columns(edm, sigma[:-1], prediction_type), **columns_of(updates)}
    return edm_table("edm_dpmpp_2m", schedule, edm, sigma, columns, guidance_scale, guidance_interval)


def _options(
    levels: LevelKind,
    rho: float,
    sigma_min: float | None,
    sigma_max: float | None,
    sigmas: Sequence[float] | None,
    *,
    karras: bool,
) -> LevelOptions:
    """Options of the noise levels, which follow a rule where a caller gives none: there are no timesteps to space."""
    rule: LevelKind = "karras" if levels == "schedule" and sigmas is None else levels
    return LevelOptions(rule, karras, rho, sigma_min, sigma_max, sigmas)


def _levels(
    schedule: NoiseSchedule, edm: EdmLevels, steps: int | None, final_sigma: float, options: LevelOptions
) -> Float64Array:
    """Noise at each step and of the result, shape (S + 1,)."""
    ends = edm.sigma_min, edm.sigma_max
    require_between("final_sigma", final_sigma, 0.0, edm.sigma_min)
    if options.end_clean and final_sigma != 0:
        raise ValueError(f"final_sigma must be 0 with sigmas that end at 0, got {final_sigma}")
    sigma = options.own(steps, *ends)
    if sigma is None:
        sigma = options.between(ends, ends, step_count(steps, schedule.num_train_timesteps))
    return np.append(sigma, final_sigma)
