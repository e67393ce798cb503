"""Linear multistep methods on the noise estimate: PLMS, stock Stable Diffusion 1.x's own, iPNDM, DEIS and LMS."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from stepfuse.samplers.coefficients import (
    Columns,
    Levels,
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
from stepfuse.samplers.forms import H2, H3, ZERO, D, E, Form, H, Update, X, columns_of
from stepfuse.samplers.levels import LevelKind, LevelOptions
from stepfuse.samplers.log_snr import solver_levels
from stepfuse.samplers.probability_flow import exploding_levels, ode_levels, ode_slope
from stepfuse.samplers.schedule import Float64Array, NoiseSchedule, Spacing
from stepfuse.samplers.table import StepTable

#: Adams-Bashforth: weights of the latest predictions, the latest first, by how many there are.
ADAMS_BASHFORTH = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


@recorded
def plms(
    schedule: NoiseSchedule,
    steps: int | None = None,
    *,
    timesteps: Sequence[float] | None = None,
    spacing: Spacing = "leading",
    steps_offset: int = 0,
    fixed_stride: bool = False,
    prediction_type: PredictionType = "epsilon",
    final_alpha_cumprod: float = 1.0,
    begin: int = 0,
    guidance_scale: float = 1.0,
    guidance_interval: tuple[float, float] = (0.0, 1.0),
) -> StepTable:
    """PNDM of Liu et al. (2022) without its Runge-Kutta steps: DDIM's step with the last four predictions combined.

    The first step is taken twice, by Heun's method: the second time from the same state, with the mean of the
    predictions at both of its ends. So there is one network pass more than there are steps. The registers hold the last
    three predictions, and before that what the repeated step takes of the first state.

    Args:
        schedule: As for ``ddim``, and so are the arguments not named here.
        steps: Number of steps S, 1 ≤ S ≤ T, for S + 1 network passes; one step is a single pass.
        prediction_type: What is combined is the network's output, of any type, as diffusers does it.
        begin: How many of the first steps are left out; the first that is left is taken twice.

    Returns:
        A table of S - ``begin`` + 1 rows, the noisiest timestep first, the second timestep twice; or of a single row.

    Raises:
        ValueError: As for ``ddim``, and if ``begin`` leaves no step.
        TypeError: If ``steps`` or ``begin`` is no whole number.

    Examples:
        >>> table = sf.samplers.plms(sf.NoiseSchedule.scaled_linear(), steps=20)
        >>> len(table), table.passes, len(table.columns)
        (21, 21, 32)
    """
    require_between("final_alpha_cumprod", final_alpha_cumprod, 0.0, 1.0)
    t = choose_timesteps(schedule, steps, timesteps, spacing, steps_offset)
    require_between("begin", begin, 0, len(t) - 1)
    strided = fixed_stride and timesteps is None
    prev_t, stride = next_timesteps(schedule, t, fixed_stride=strided), schedule.num_train_timesteps // len(t)
    t, prev_t = t[begin:], prev_t[begin:]
    again = t[1:2]  # where the repeated step leads to, if there is more than one step
    visited = np.concatenate([t[:1], again, t[1:]])
    starts = np.concatenate([t[:1], again + stride if strided else t[: len(again)], t[1:]])
    ends = np.concatenate([prev_t[:1], again, prev_t[1:]])
    a = alphas_at(schedule, visited)
    to_x, to_e = _transfer(prediction_type, alphas_at(schedule, starts), alphas_at(schedule, ends, final_alpha_cumprod))
    columns = {**clean_sample(prediction_type, a, None), **columns_of(_updates(to_x, to_e))}
    return build_table("plms", schedule, visited, columns, preserving_levels(a), guidance_scale, guidance_interval)


@recorded
def deis(
    schedule: NoiseSchedule,
    steps: int | None = None,
    *,
    timesteps: Sequence[float] | None = None,
    sigmas: Sequence[float] | None = None,
    spacing: Spacing = "linspace",
    steps_offset: int = 0,
    prediction_type: PredictionType = "epsilon",
    clip: float | None = None,
    karras: bool = False,
    levels: LevelKind = "schedule",
    rho: float = 7.0,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    order: int = 2,
    lower_order_final: bool = True,
    final_alpha_cumprod: float = 1.0,
    begin: int = 0,
    guidance_scale: float = 1.0,
    guidance_interval: tuple[float, float] = (0.0, 1.0),
) -> StepTable:
    """DEIS of Zhang & Chen (2023) in log rho: the noise estimate is extrapolated by a polynomial, integrated exactly.

    With rho the noise over signal, x / signal changes by the integral of the estimate over rho. The polynomial, in log
    rho, goes through the latest estimates; those of the last two steps are in the registers.

    Args:
        schedule: As for ``dpmpp_2m``, and so are the arguments not named here.
        order: Estimates that the polynomial goes through, 1 to 3; the first steps have fewer.
        lower_order_final: Whether the last steps are of lower order where S < 15.
        final_alpha_cumprod: As for ``ddim``; diffusers' class always ends at the schedule's first.
        begin: How many of the first steps are left out; the first that is left is of first order.

    Returns:
        A table of S - ``begin`` rows, the noisiest timestep first.

    Raises:
        ValueError: As for ``dpmpp_2m``, and if ``order`` is not 1 to 3 or ``begin`` leaves no step.
        TypeError: If ``steps``, ``order`` or ``begin`` is no whole number.

    Examples:
        >>> table = sf.samplers.deis(sf.NoiseSchedule.linear(), steps=10)
        >>> len(table), table.passes, len(table.columns)
        (10, 10, 16)
    """
    require_between("order", order, 1, 3)
    options = LevelOptions(levels, karras, rho, sigma_min, sigma_max, sigmas, timesteps)
    t, ratio = solver_levels(
        schedule, steps, timesteps, spacing, steps_offset, prediction_type, final_alpha_cumprod, options
    )
    require_between("begin", begin, 0, len(t) - 1)
    falls = lower_order_final and len(t) < 15
    t, ratio = t[begin:], ratio[begin:]
    with np.errstate(divide="ignore"):
        log_rho = np.log(ratio)
    weights = []
    for i in range(len(t)):
        now = min(order, i + 1, len(t) - i if falls else order)
        nodes = log_rho[i - now + 1 : i + 1][::-1] - log_rho[i]
        weights.append(ratio[i] * _extrapolated(nodes, log_rho[i + 1] - log_rho[i]))
    columns, states = _in_rho(prediction_type, clip, ratio, weights)
    return build_table("deis", schedule, t, columns, states, guidance_scale, guidance_interval)


@recorded
def ipndm(
    schedule: NoiseSchedule,
    steps: int | None = None,
    *,
    timesteps: Sequence[float] | None = None,
    sigmas: Sequence[float] | None = None,
    spacing: Spacing = "linspace",
    steps_offset: int = 0,
    prediction_type: PredictionType = "epsilon",
    clip: float | None = None,
    karras: bool = False,
    levels: LevelKind = "schedule",
    rho: float = 7.0,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    order: int = 4,
    final_alpha_cumprod: float = 1.0,
    begin: int = 0,
    guidance_scale: float = 1.0,
    guidance_interval: tuple[float, float] = (0.0, 1.0),
) -> StepTable:
    """Improved PNDM, of Zhang & Chen (2023): ``plms`` that begins with fewer estimates instead of a repeated step.

    DDIM's step with the latest noise estimates combined by Adams-Bashforth's weights for even steps, however uneven
    they are; ``lms`` and ``deis`` have weights for the steps as they are. The registers hold the last three estimates.

    Args:
        schedule: As for ``deis``, and so are the arguments not named here.
        order: Estimates that are combined, 1 to 4; the first steps have fewer. Of order 1 it is DDIM's step.

    Returns:
        A table of S - ``begin`` rows, the noisiest timestep first; of one line up to order 2.

    Raises:
        ValueError: As for ``deis``, but that ``order`` may be 4.
        TypeError: If ``steps``, ``order`` or ``begin`` is no whole number.

    Examples:
        >>> table = sf.samplers.ipndm(sf.NoiseSchedule.linear(), steps=8, order=3, spacing="leading")
        >>> len(table), table.passes, len(table.columns)
        (8, 8, 32)
    """
    require_between("order", order, 1, 4)
    options = LevelOptions(levels, karras, rho, sigma_min, sigma_max, sigmas, timesteps)
    t, ratio = solver_levels(
        schedule, steps, timesteps, spacing, steps_offset, prediction_type, final_alpha_cumprod, options
    )
    require_between("begin", begin, 0, len(t) - 1)
    t, ratio = t[begin:], ratio[begin:]
    weights = [width * np.array(ADAMS_BASHFORTH[min(order - 1, i)]) for i, width in enumerate(np.diff(ratio))]
    columns, states = _in_rho(prediction_type, clip, ratio, weights)
    return build_table("ipndm", schedule, t, columns, states, guidance_scale, guidance_interval)


def _in_rho(
    prediction_type: PredictionType, clip: float | None, rho: Float64Array, weights: Sequence[Float64Array]
) -> tuple[Columns, Levels]:
    """Columns and levels of steps which add to x / signal the latest noise estimates, by each step's weights."""
    signal = 1 / np.hypot(1, rho)
    a = signal[:-1] ** 2
    in_eps = zip(*eps_from(prediction_type, a, from_clipped=clip is not None), strict=True)
    updates = []
    for i, (x, d, e) in enumerate(in_eps):
        estimate = x * X + d * D + e * E
        after = _added(1 / signal[i] * X, weights[i], (estimate, H, H2, H3))
        updates.append(Update(signal[i + 1] * after, h=estimate, h2=H, h3=H2))
    return {**clean_sample(prediction_type, a, clip), **columns_of(updates)}, preserving_levels(a)


@recorded
def lms(
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
    order: int = 4,
    begin: int = 0,
    guidance_scale: float = 1.0,
    guidance_interval: tuple[float, float] = (0.0, 1.0),
) -> StepTable:
    """Adams-Bashforth for uneven steps on the probability-flow ODE, as k-diffusion's ``sample_lms``.

    The state is ``x0 + sigma z``. The polynomial in sigma through the latest slopes is integrated to the next noise
    level (Hairer, Norsett & Wanner, 1993, section III.5); those of the last three steps are in the registers.

    Args:
        schedule: As for ``euler``, variance-preserving alone; and so are the arguments not named here.
        steps: Number of network evaluations S, 1 ≤ S ≤ T.
        order: Slopes that the polynomial goes through, 1 to 4; the first steps have fewer. Of order 1 it is ``euler``.
        begin: How many of the first steps are left out; the first that is left is of first order.

    Returns:
        A table of S - ``begin`` rows, the noisiest timestep first; of one line up to order 2.

    Raises:
        ValueError: As for ``ddim``, and if ``order`` is not 1 to 4 or ``begin`` leaves no step.
        TypeError: If ``steps``, ``order`` or ``begin`` is no whole number.

    Examples:
        >>> table = sf.samplers.lms(sf.NoiseSchedule.scaled_linear(), steps=20)
        >>> len(table), table.passes, len(table.columns)
        (20, 20, 32)
    """
    require_between("order", order, 1, 4)
    options = LevelOptions(levels, karras, rho, sigma_min, sigma_max, sigmas, timesteps)
    t, sigma, init_scale = ode_levels(schedule, steps, timesteps, spacing, steps_offset, prediction_type, options)
    require_between("begin", begin, 0, len(t) - 1)
    t, sigma = t[begin:], sigma[begin:]
    line_1, in_slope = ode_slope(prediction_type, sigma, None)
    updates = []
    for i, (x, d, e, after) in enumerate(zip(*in_slope, np.append(sigma[1:], 0.0), strict=True)):
        slope, width, now = x * X + d * D + e * E, after - sigma[i], min(order, i + 1)
        nodes = (sigma[i - now + 1 : i + 1][::-1] - sigma[i]) / width  # in widths of this step, which leads to 1
        weights = width * np.linalg.solve(nodes ** np.arange(now)[:, None], 1 / np.arange(1, now + 1))
        updates.append(Update(_added(X, weights, (slope, H, H2, H3)), h=slope, h2=H, h3=H2))
    columns = {**line_1, **columns_of(updates)}
    return build_table(
        "lms", schedule, t, columns, exploding_levels(sigma), guidance_scale, guidance_interval, init_scale
    )


def _added(start: Form, weights: Iterable[float], estimates: Sequence[Form]) -> Form:
    """``start`` and the latest estimates by their weights, of which there may be fewer."""
    for weight, estimate in zip(weights, estimates, strict=False):
        start += weight * estimate
    return start


def _extrapolated(nodes: Float64Array, to: float) -> Float64Array:
    """Weights of values at nodes u in the integral, over e^u from u = 0 to ``to``, of the polynomial through them."""
    grown = np.exp(to)
    moments = [grown - 1]  # of u^k
    for k in range(1, len(nodes)):
        moments.append((grown * to**k if grown else 0.0) - k * moments[-1])
    return np.linalg.solve(nodes ** np.arange(len(nodes))[:, None], np.array(moments))


def _updates(to_x: Float64Array, to_e: Float64Array) -> list[Update]:
    """The rows, from the weights of state and combined prediction in each step's result."""
    if len(to_x) == 1:
        return [Update(to_x[0] * X + to_e[0] * E)]
    again = to_x[1] * X + 0.5 * to_e[1] * E  # lacks the second prediction alone
    updates = [Update(to_x[0] * X + to_e[0] * E, h=E, h2=again), Update(H2 + 0.5 * to_e[1] * E, h=H)]
    for row in range(2, len(to_x)):
        combined = _added(ZERO, ADAMS_BASHFORTH[min(row - 1, 3)], (E, H, H2, H3))
        updates.append(Update(to_x[row] * X + to_e[row] * combined, h=E, h2=H, h3=H2))
    return updates


def _transfer(prediction_type: str, a: Float64Array, a_next: Float64Array) -> tuple[Float64Array, Float64Array]:
    """DDIM's step from signal share ``a`` to ``a_next``, Eq. 9 of Liu et al., as weights of state and prediction."""
    line = clean_sample(prediction_type, a, None)
    x_to_eps, _, e_to_eps = eps_from(prediction_type, a, from_clipped=False)
    signal, noise = preserving_levels(a_next)
    with np.errstate(invalid="ignore"):
        on_x, on_e = (signal * np.asarray(line[name], np.float64) for name in ("p_x", "p_e"))
        return on_x + noise * x_to_eps, on_e + noise * e_to_eps
