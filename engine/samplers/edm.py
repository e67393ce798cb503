"""Samplers of EDM schedules, whose states are ``x0 + sigma z`` at noise levels of any kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from stepfuse.samplers.coefficients import Columns, build_table, match_count, recorded, require_between, step_count
from stepfuse.samplers.forms import H2, D, H, Update, X, columns_of
from stepfuse.samplers.schedule import EdmLevels, Float64Array, NoiseSchedule, explicit_timesteps
from stepfuse.samplers.table import StepTable

EdmPrediction = Literal["epsilon", "v_prediction"]


@recorded
def edm_euler(
    schedule: NoiseSchedule,
    steps: int | None = None,
    *,
    prediction_type: EdmPrediction = "epsilon",
    rho: float = 7.0,
    exponential: bool = False,
    final_sigma: float = 0.0,
    guidance_scale: float = 1.0,
    guidance_interval: tuple[float, float] = (0.0, 1.0),
) -> StepTable:
    """Euler's method on the probability-flow ODE of an EDM model (Karras et al., 2022, section 3).

    Args:
        schedule: ``NoiseSchedule.edm(...)``.
        steps: Number of network evaluations S, 1 ≤ S ≤ T.
        prediction_type: Sign of the network's output, as in ``NoiseSchedule.edm``.
        rho: Exponent of Eq. 5, which spaces the noise levels.
        exponential: Whether their logarithms are spaced evenly instead.
        final_sigma: Noise level of the result, 0 to ``sigma_min``.
        guidance_scale: As for ``ddim``.
        guidance_interval: As for ``ddim``, over the logarithm of the noise level.

    Returns:
        A table of S rows, the noisiest level first.

    Raises:
        ValueError: If a bound is broken, the schedule is no EDM schedule, or ``rho`` is given with ``exponential``.
        TypeError: If ``steps`` is no whole number.
    """
    edm = _edm_of(schedule)
    sigmas = _levels(schedule, edm, steps, rho, final_sigma, exponential=exponential)
    ratio = sigmas[1:] / sigmas[:-1]
    columns = {**_network(edm, sigmas[:-1], prediction_type), "q_x": ratio, "q_d": 1 - ratio}
    return _table("edm_euler", schedule, edm, sigmas, columns, guidance_scale, guidance_interval)


@recorded
def edm_dpmpp_2m(
    schedule: NoiseSchedule,
    steps: int | None = None,
    *,
    prediction_type: EdmPrediction = "epsilon",
    rho: float = 7.0,
    exponential: bool = False,
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
    """
    require_between("order", order, 1, 3)
    if solver_type not in ("midpoint", "heun"):
        raise ValueError(f"solver_type must be 'midpoint' or 'heun', got {solver_type!r}")
    edm = _edm_of(schedule)
    sigmas = _levels(schedule, edm, steps, rho, final_sigma, exponential=exponential)
    count = len(sigmas) - 1
    require_between("begin", begin, 0, count - 1)
    falls = lower_order_final and count < 15
    sigmas = sigmas[begin:]
    with np.errstate(divide="ignore"):
        length = -np.diff(np.log(sigmas))  # h, in half log-SNR
    updates = []
    for i, h in enumerate(length.tolist()):
        now = min(order, i + 1, len(length) - i if falls else order)
        rest = float(sigmas[i + 1] / sigmas[i])
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
    columns: Columns = {**_network(edm, sigmas[:-1], prediction_type), **columns_of(updates)}
    return _table("edm_dpmpp_2m", schedule, edm, sigmas, columns, guidance_scale, guidance_interval)


@recorded
def cm(
    schedule: NoiseSchedule,
    steps: int | None = None,
    *,
    timesteps: Sequence[float] | None = None,
    prediction_type: EdmPrediction = "epsilon",
    clip: float | None = None,
    rho: float = 7.0,
    s_noise: float = 1.0,
    guidance_scale: float = 1.0,
    guidance_interval: tuple[float, float] = (0.0, 1.0),
) -> StepTable:
    """Multistep consistency sampling (Song et al., 2023, Algorithm 1): the clean estimate, noised to the next level.

    Args:
        schedule: ``NoiseSchedule.edm(..., timestep_scale=250, num_train_timesteps=T)``, T ≥ 2.
        steps: Number of network evaluations S, 1 ≤ S ≤ T.
        timesteps: Places among the T noise levels of training, strictly decreasing, 0 the noisiest: ``[22, 0]`` goes
            from level 0 to level 22. Whole numbers 0 to T - 1; without them every T // S-th is taken.
        prediction_type: As for ``edm_euler``.
        clip: As for ``ddim``.
        rho: As for ``edm_euler``.
        s_noise: Scale of the noise that is added, at least 0.
        guidance_scale: As for ``ddim``.
        guidance_interval: As for ``edm_euler``.

    Returns:
        A table of S rows, the noisiest level first.

    Raises:
        ValueError: As for ``edm_euler``, and if ``timesteps`` do not fall or lie outside of 0 to T - 1, ``s_noise`` is
            negative or ``clip`` not above 0.
        TypeError: If ``steps`` is no whole number.
    """
    edm, total = _edm_of(schedule), schedule.num_train_timesteps
    require_between("num_train_timesteps", total, 2, np.inf)
    require_between("s_noise", s_noise, 0, np.inf)
    if clip is not None and not clip > 0:
        raise ValueError(f"clip must be above 0, or None, got {clip}")
    if timesteps is not None:
        places = explicit_timesteps(total, timesteps)[::-1]
        match_count(steps, len(places))
    else:
        count = step_count(steps, total)
        places = np.arange(count, dtype=np.float64) * (total // count)
    sigma = _karras(edm, places / (total - 1), rho)
    after = np.append(sigma[1:], edm.sigma_min)
    # Scaled so that at sigma_min the clean sample is the state itself (Appendix C).
    above = sigma - edm.sigma_min
    columns: Columns = {
        **_network(edm, sigma, prediction_type),
        "p_x": edm.sigma_data**2 / (above**2 + edm.sigma_data**2),
        "p_e": _sign(prediction_type) * above * edm.sigma_data / np.hypot(sigma, edm.sigma_data),
        "q_d": 1.0,
        "q_z": s_noise * np.sqrt(np.maximum(after**2 - edm.sigma_min**2, 0.0)),
    }
    if clip is not None:
        columns |= {"lo": -clip, "hi": clip}
    sigmas = np.append(sigma, 0.0)
    return _table("cm", schedule, edm, sigmas, columns, guidance_scale, guidance_interval, edm.sigma_max)


def _edm_of(schedule: NoiseSchedule) -> EdmLevels:
    if schedule.edm_levels is None:
        raise ValueError(f"schedule must be of EDM's kind, NoiseSchedule.edm(...), got {schedule!r}")
    return schedule.edm_levels


def _karras(edm: EdmLevels, ramp: Float64Array, rho: float) -> Float64Array:
    """Noise levels of Karras et al. (2022), Eq. 5, at shares of the way from the most noise to the least."""
    if not (np.isfinite(rho) and rho > 0):
        raise ValueError(f"rho must be above 0 and finite, got {rho}")
    low, high = edm.sigma_min ** (1 / rho), edm.sigma_max ** (1 / rho)
    return np.asarray((high + ramp * (low - high)) ** rho, dtype=np.float64)


def _levels(
    schedule: NoiseSchedule, edm: EdmLevels, steps: int | None, rho: float, final_sigma: float, *, exponential: bool
) -> Float64Array:
    """Noise at each step and of the result, shape (S + 1,)."""
    require_between("final_sigma", final_sigma, 0.0, edm.sigma_min)
    ramp = np.linspace(0, 1, step_count(steps, schedule.num_train_timesteps))
    if exponential and rho != 7:
        raise ValueError(f"rho must be left out with exponential=True, got {rho}")
    sigma = edm.sigma_max * (edm.sigma_min / edm.sigma_max) ** ramp if exponential else _karras(edm, ramp, rho)
    return np.append(sigma, final_sigma)


def _sign(prediction_type: str) -> float:
    if prediction_type not in ("epsilon", "v_prediction"):
        raise ValueError(
            f"prediction_type must be 'epsilon' or 'v_prediction' on an EDM schedule, got {prediction_type!r}"
        )
    return 1.0 if prediction_type == "epsilon" else -1.0


def _network(edm: EdmLevels, sigma: Float64Array, prediction_type: str) -> Columns:
    """Input scale and line 1: Karras et al. (2022), Table 1, of c_in, c_skip and c_out."""
    both = np.hypot(sigma, edm.sigma_data)
    return {
        "s": 1 / both,
        "p_x": (edm.sigma_data / both) ** 2,
        "p_e": _sign(prediction_type) * sigma * edm.sigma_data / both,
    }


def _table(
    name: str,
    schedule: NoiseSchedule,
    edm: EdmLevels,
    sigmas: Float64Array,
    columns: Columns,
    guidance_scale: float,
    guidance_interval: tuple[float, float],
    init_scale: float | None = None,
) -> StepTable:
    t = np.clip(edm.timestep_scale * np.log(sigmas[:-1]), schedule.min_timestep, schedule.max_timestep)
    return build_table(
        name,
        schedule,
        t,
        columns,
        (np.ones_like(t), sigmas[:-1]),
        guidance_scale,
        guidance_interval,
        float(np.hypot(edm.sigma_max, 1.0)) if init_scale is None else init_scale,  # as diffusers scales it
        (1.0, float(sigmas[-1])),
    )
