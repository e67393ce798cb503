"""Rows of single steps of diffusers' schedulers, from the numbers that a scheduler holds at that step.

A table of ``stepfuse.samplers`` holds a whole run. A scheduler of diffusers is called with one timestep at a time, in
any order, so here each row is made by itself, and cached. It is made in the precision in which the scheduler holds
``alphas_cumprod``: float32 rounds the β of one of DDPM's steps by 3e-4, and diffusers' images with it. The history
register keeps what a scheduler returns beside the next state: the clean sample, or what is computed from it.
"""

from __future__ import annotations

import itertools
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from stepfuse.samplers.coefficients import Columns, ancestral, clean_sample, consistency, eps_from, implicit
from stepfuse.samplers.linear_multistep import ADAMS_BASHFORTH
from stepfuse.samplers.schedule import Float64Array
from stepfuse.samplers.table import Float32Array, StepTable

_cached = lru_cache(maxsize=4096, typed=True)


class UnsupportedStep(Exception):  # noqa: N818 (no error: diffusers' own code does the step)
    """The fused step does not cover a configuration or a tensor; the message says which."""


@_cached
def ddim_row(
    prediction_type: str, a: np.floating[Any], a_prev: float, eta: float, clip: float | None, clipped_eps: bool
) -> Float32Array:
    """A step of ``DDIMScheduler`` from ``alphas_cumprod`` ``a`` to ``a_prev``; it keeps the clean sample.

    Raises:
        UnsupportedStep: If a coefficient is not finite.
    """
    columns = implicit(prediction_type, _scalar(a), _scalar(a_prev, a.dtype), eta, clip, clipped_eps=clipped_eps)
    return _row({**columns, "u_d": 1.0})


@_cached
def ddim_inverse_row(
    prediction_type: str, a: np.floating[Any] | float, a_next: np.floating[Any], clip: float | None
) -> Float32Array:
    """A step of ``DDIMInverseScheduler`` from ``alphas_cumprod`` ``a`` to the noisier ``a_next``, as ``ddim_row``."""
    signal, signal_next = _scalar(a, a_next.dtype), _scalar(a_next)
    noise_next = np.sqrt(1 - signal_next)
    with np.errstate(divide="ignore", invalid="ignore"):
        x_to_eps, _, e_to_eps = eps_from(prediction_type, signal, from_clipped=False)
        columns: Columns = {
            **_clean(prediction_type, signal, clip),
            "q_x": noise_next * x_to_eps,
            "q_d": np.sqrt(signal_next),
            "q_e": noise_next * e_to_eps,
            "u_d": 1.0,
        }
    return _row(columns)


@_cached
def ddpm_row(
    prediction_type: str, t: int, a: np.floating[Any], a_prev: float, variance: str, clip: float | None
) -> Float32Array:
    """A step of ``DDPMScheduler``, as ``ddim_row``; no noise is added where t is 0."""
    columns = ancestral(prediction_type, _scalar(t), _scalar(a), _scalar(a_prev, a.dtype), variance, clip)
    return _row({**columns, "u_d": 1.0})


@_cached
def lcm_row(
    prediction_type: str, t: int, a: np.floating[Any], a_prev: float | None, timestep_scaling: float, clip: float | None
) -> Float32Array:
    """A step of ``LCMScheduler``, as ``ddim_row``; it keeps ``denoised``, the next state if ``a_prev`` is None."""
    c_skip, c_out = consistency(_scalar(t), timestep_scaling)
    signal = _scalar(1.0 if a_prev is None else a_prev, a.dtype)
    root = np.sqrt(signal)
    columns: Columns = {
        **_clean(prediction_type, _scalar(a), clip),
        **{"q_x": root * c_skip, "q_d": root * c_out, "q_z": np.sqrt(1 - signal)},
        **{"u_x": c_skip, "u_d": c_out},
    }
    return _row(columns)


@_cached
def dpm_row(
    algorithm_type: str,
    solver_type: str,
    prediction_type: str,
    sigma: float,
    sigma_next: float,
    before: tuple[float, ...] = (),
) -> Float32Array:
    """A step of ``DPMSolverMultistepScheduler`` from noise level ``sigma`` to ``sigma_next``, as ``ddim_row``.

    Lu et al. (2022): DPM-Solver, which integrates the noise estimate, and DPM-Solver++, which integrates the clean
    sample; ``sde-`` is the stochastic form of either. The row keeps what it integrates.

    Args:
        algorithm_type: ``dpmsolver``, ``dpmsolver++``, ``sde-dpmsolver`` or ``sde-dpmsolver++``.
        solver_type: ``midpoint`` or ``heun``.
        prediction_type: ``epsilon``, ``v_prediction``, ``sample``, or ``flow_prediction``, for which levels are shares
            of noise and not its ratio to the signal.
        sigma: Noise level that the step starts from.
        sigma_next: Noise level that it leads to.
        before: Noise levels of the one or two steps before, the latest first, whose estimates are in the registers: as
            many as the step's order has more than 1.
    """
    flow = prediction_type == "flow_prediction"
    alpha, noise = _amplitudes(sigma, flow)
    alpha_next, noise_next = _amplitudes(sigma_next, flow)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        half_log_snr = np.log(alpha) - np.log(noise)
        h = np.log(alpha_next) - np.log(noise_next) - half_log_snr
        stochastic = algorithm_type.startswith("sde-")
        share = 2.0 if stochastic else 1.0  # of the estimate, next to that of the deterministic solver
        on_data = algorithm_type.endswith("++")
        if on_data:
            on_x = noise_next / noise * (np.exp(-h) if stochastic else 1.0)
            on_estimate = -alpha_next * np.expm1(-share * h)
            on_slope = alpha_next * (np.expm1(-share * h) / (share * h) + 1)
            on_noise = noise_next * np.sqrt(-np.expm1(-2 * h))
        else:
            on_x = alpha_next / alpha
            on_estimate = -share * noise_next * np.expm1(h)
            on_slope = -share * noise_next * (np.expm1(h) / h - 1)
            on_noise = noise_next * np.sqrt(np.expm1(2 * h))
        ratios = _ratios(half_log_snr, h, [_amplitudes(level, flow) for level in before])
        weights = _slopes(on_slope if solver_type == "heun" else 0.5 * on_estimate, ratios[:1])
        if len(ratios) == 2:
            of_h = (-np.expm1(-share * h) - share * h) / (share * h) ** 2 if on_data else (np.expm1(h) - h) / h**2
            # Of its stochastic form this sign of one half is diffusers' own, which makes it one of first order.
            on_curve = alpha_next * (of_h + (-0.5 if stochastic else 0.5)) if on_data else -noise_next * (of_h - 0.5)
            weights = _slopes(on_slope, ratios, on_curve)
    on_estimate = on_estimate + weights[0]
    columns: Columns = {"q_x": on_x, "q_z": on_noise if stochastic else 0.0}
    columns |= dict(zip(("q_h", "q_h2"), weights[1:], strict=False))
    a = _scalar(alpha**2)
    if on_data:
        line = {"p_x": 1.0, "p_e": -sigma} if flow else _clean(prediction_type, a, None)
        return _row({**line, **columns, "q_d": on_estimate, "u_d": 1.0})
    x_to_eps, _, e_to_eps = eps_from(prediction_type, a, from_clipped=False)
    columns |= {"q_x": on_x + on_estimate * x_to_eps, "q_e": on_estimate * e_to_eps}
    return _row({**columns, "u_x": x_to_eps, "u_e": e_to_eps})


@_cached
def plms_row(prediction_type: str, counter: int, a: np.floating[Any], a_prev: np.floating[Any]) -> Float32Array:
    """A step of ``PNDMScheduler`` without Runge-Kutta steps, from ``alphas_cumprod`` ``a`` to ``a_prev``.

    The registers keep the last three predictions, and after the first step the state that the second one begins at.

    Args:
        prediction_type: ``epsilon`` or ``v_prediction``.
        counter: How many steps there were before.
        a: At the state that the step begins at.
        a_prev: Where it leads to.
    """
    ends = _scalar(a, float), _scalar(a_prev, float)
    step: dict[str, Any] = dict(implicit(prediction_type, *ends, 0.0, None, clipped_eps=False))
    on_x, on_e = (step[f"q_{name}"] + step["q_d"] * step[f"p_{name}"] for name in "xe")
    if counter == 0:
        columns: Columns = {"q_x": on_x, "q_e": on_e, "u_e": 1.0, "v_x": 1.0}
    elif counter == 1:
        columns = {"q_h2": on_x, "q_e": on_e / 2, "q_h": on_e / 2, "u_h": 1.0}
    else:
        columns = {"q_x": on_x, "u_e": 1.0, **_combined(on_e, "q_e", counter)}
    return _row({**columns, "spare": 0.0})


@_cached
def ipndm_row(before: int, level: tuple[float, float], following: tuple[float, float]) -> Float32Array:
    """A step of ``IPNDMScheduler`` between levels (signal, noise); the registers keep the last three noise estimates.

    Args:
        before: How many steps of the run there were.
        level: Of the state that the step begins at.
        following: Of where it leads to.
    """
    (signal, noise), (next_signal, next_noise) = level, following
    scale = next_signal / max(signal, 1e-8)  # diffusers' way at a level without signal
    columns = _combined(next_noise - noise * scale, "own", before + 1)
    own = columns.pop("own")
    columns |= {"q_x": scale + own * noise, "q_e": own * signal, "u_x": noise, "u_e": signal}
    return _row(columns)


def _combined(whole: Any, own: str, count: int) -> dict[str, Any]:
    """The latest of ``count`` estimates by Adams-Bashforth's weights of ``whole``, the others shifted on."""
    weights = ADAMS_BASHFORTH[min(count, 4) - 1]
    shifts = {"v_h": 1.0, "w_h2": 1.0}
    return shifts | {name: whole * weight for name, weight in zip((own, "q_h", "q_h2", "q_h3"), weights, strict=False)}


def _ratios(half_log_snr: Any, h: Any, before: list[tuple[np.float64, np.float64]]) -> list[Any]:
    """Lengths in half log SNR of the steps before, the latest first, over that of the step itself, ``h``."""
    ends = [half_log_snr, *(np.log(alpha) - np.log(noise) for alpha, noise in before)]
    return [(later - earlier) / h for later, earlier in itertools.pairwise(ends)]


def _slopes(on_slope: Any, ratios: list[Any], on_curve: Any = 0.0) -> list[Any]:
    """Weights of the latest estimates, this step's first, by divided differences: of the slope, and of three the curve.

    Lu et al. (2022), DPM-Solver++, Algorithm 2 for two; three have the slope at this step of the parabola through them.
    """
    if not ratios:
        return [0.0]
    first = on_slope / ratios[0]
    if len(ratios) == 1:
        return [first, -first]
    both = ratios[0] + ratios[1]
    bend = (on_slope * ratios[0] + on_curve) / both  # of the difference of both differences
    first, second = (on_slope + bend) / ratios[0], bend / ratios[1]
    return [first, -first - second, second]


def _amplitudes(sigma: float, flow: bool) -> tuple[np.float64, np.float64]:
    """Signal and noise at a noise level."""
    if flow:
        return np.float64(1 - sigma), np.float64(sigma)
    alpha = 1 / np.sqrt(np.float64(sigma) ** 2 + 1)
    return alpha, sigma * alpha if np.isfinite(sigma) else np.float64(1)


def _clean(prediction_type: str, a: Float64Array, clip: float | None) -> Columns:
    with np.errstate(divide="ignore"):
        return clean_sample(prediction_type, a, clip)


def _scalar(value: float | np.floating[Any], dtype: npt.DTypeLike | None = None) -> Any:
    return np.array(value, dtype=dtype)


def _row(columns: Columns) -> Float32Array:
    try:
        return StepTable.from_columns(columns)[0]
    except ValueError as error:
        raise UnsupportedStep(
            "a coefficient is not finite, as where alphas_cumprod is 0 with prediction_type='epsilon'"
        ) from error
