"""Samplers: each a function from a noise schedule to a StepTable.

With x the state, e the network's output and d the clean sample that it implies, a step is
``x' = q_x x + q_d d + q_e e + q_h h + q_z z``. Each function writes its paper's update in these terms, in float64.
``ddim_inverse``, the way back, is in ``inversion.py``; those that go by noise levels are in ``sigmas.py``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, cast

import numpy as np

from stepfuse.coefficients import (
    TINY_ALPHA,
    Columns,
    PredictionType,
    alphas_at,
    ancestral,
    build_table,
    choose_timesteps,
    clean_sample,
    consistency,
    implicit,
    karras_sigmas,
    next_timesteps,
    recorded,
    require_between,
    sigmas_of,
    step_count,
)
from stepfuse.inversion import ddim_inverse as ddim_inverse
from stepfuse.schedule import NoiseSchedule, Spacing, spaced_timesteps
from stepfuse.sigmas import euler as euler
from stepfuse.sigmas import euler_ancestral as euler_ancestral
from stepfuse.sigmas import heun as heun
from stepfuse.steptable import StepTable


class NaiveSamplerWarning(UserWarning):
    """The sampler asked for is wrong on purpose: a baseline to compare with, not to use."""


@recorded
def ddim(
    schedule: NoiseSchedule,
    steps: int | None = None,
    *,
    timesteps: Sequence[float] | None = None,
    spacing: Spacing = "leading",
    steps_offset: int = 0,
    prediction_type: PredictionType = "epsilon",
    clip: float | None = None,
    clipped_eps: bool = False,
    eta: float = 0.0,
    final_alpha_cumprod: float = 1.0,
    guidance_scale: float = 1.0,
    guidance_interval: tuple[float, float] = (0.0, 1.0),
) -> StepTable:
    """DDIM of Song et al. (2021), Eq. 12: any subset of the training timesteps, taken backwards.

    Args:
        schedule: Noise levels the network was trained with, variance-preserving.
        steps: Number of network evaluations S, 1 ≤ S ≤ T. May be left out where ``timesteps`` are given.
        timesteps: Timesteps of one's own, strictly decreasing, instead of ``spacing``; each step leads to the next one.
        spacing: Which S timesteps are taken: ``leading``, ``trailing`` or ``linspace``.
        steps_offset: Added to ``leading`` timesteps.
        prediction_type: What the network predicts: ``epsilon``, ``v_prediction`` or ``sample``.
        clip: The implied clean sample is clamped to [-clip, clip]; None leaves it alone.
        clipped_eps: Whether the noise estimate is derived again from the clamped sample.
        eta: Share of DDPM's noise that is added back (Eq. 16), 0 (deterministic) to 1.
        final_alpha_cumprod: ᾱ of the state after the last step: 1 for a clean sample.
        guidance_scale: Classifier-free guidance (Ho & Salimans, 2022); 1 means one network pass a step instead of two.
        guidance_interval: Guidance is on while t / (T - 1) lies within these bounds, 1 being the noisiest
            (Kynkäänniemi et al., 2024); elsewhere the conditional pass stands alone.

    Returns:
        A table of S rows, the noisiest timestep first.

    Raises:
        ValueError: If a bound is broken; the message carries the value received.
    """
    require_between("eta", eta, 0.0, 1.0)
    require_between("final_alpha_cumprod", final_alpha_cumprod, 0.0, 1.0)
    t = choose_timesteps(schedule, steps, timesteps, spacing, steps_offset)
    prev_t = next_timesteps(schedule, t, explicit=timesteps is not None)
    a, a_prev = alphas_at(schedule, t), alphas_at(schedule, prev_t, final_alpha_cumprod)
    columns = implicit(prediction_type, a, a_prev, eta, clip, clipped_eps=clipped_eps)
    return build_table("ddim", schedule, t, columns, guidance_scale, guidance_interval)


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
        ValueError: If a bound is broken; the message carries the value received.
    """
    t = choose_timesteps(schedule, steps, timesteps, spacing, steps_offset)
    a, a_prev = alphas_at(schedule, t), alphas_at(schedule, np.append(t[1:], -1.0))
    columns = ancestral(prediction_type, t, a, a_prev, variance, clip)
    return build_table("ddpm", schedule, t, columns, guidance_scale, guidance_interval)


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
        ValueError: If a bound is broken; the message carries the value received.

    Warns:
        NaiveSamplerWarning: If any timestep is left out.
    """
    t = choose_timesteps(schedule, steps, timesteps, spacing, steps_offset)
    columns = ancestral(prediction_type, t, alphas_at(schedule, t), alphas_at(schedule, t - 1), variance, clip)
    table = build_table("ddpm_strided", schedule, t, columns, guidance_scale, guidance_interval)
    if len(t) < schedule.num_train_timesteps:
        warnings.warn(
            f"ddpm_strided with {len(t)} of {schedule.num_train_timesteps} steps is wrong on purpose:"
            " use ddim or ddpm for samples worth having",
            NaiveSamplerWarning,
            stacklevel=3,
        )
    return table


@recorded
def dpmpp_2m(
    schedule: NoiseSchedule,
    steps: int | None = None,
    *,
    timesteps: Sequence[float] | None = None,
    spacing: Spacing = "linspace",
    steps_offset: int = 0,
    prediction_type: PredictionType = "epsilon",
    clip: float | None = None,
    karras: bool = False,
    lower_order_final: bool = True,
    final_alpha_cumprod: float = 1.0,
    guidance_scale: float = 1.0,
    guidance_interval: tuple[float, float] = (0.0, 1.0),
) -> StepTable:
    """DPM-Solver++(2M) of Lu et al. (2022b), Algorithm 2, midpoint form; the history is the last clean estimate.

    Args:
        schedule: As for ``ddim``, and so are the arguments not named here.
        steps: Number of network evaluations S, 1 ≤ S < T.
        spacing: As for ``ddim``, over S + 1 points of which the cleanest is left out, as diffusers does.
        karras: Noise levels of Karras et al. (2022), Eq. 5 with ρ = 7, instead of ``spacing``.
        lower_order_final: Whether the last step is of first order where S < 15. Towards a clean sample it always is.

    Returns:
        A table of S rows, the noisiest timestep first.

    Raises:
        ValueError: If a bound is broken; the message carries the value received.
    """
    total = schedule.num_train_timesteps
    if timesteps is not None or spacing == "trailing":
        t = choose_timesteps(schedule, steps, timesteps, spacing, steps_offset)
    else:
        count = step_count(steps, total - 1)
        t = spaced_timesteps(total, count + 1, spacing)[:-1] + (steps_offset if spacing == "leading" else 0)
    all_sigmas = sigmas_of(schedule, prediction_type)
    sigma = np.interp(t, np.arange(total), all_sigmas)
    if karras:
        sigma = karras_sigmas(all_sigmas, len(t))
        t = np.interp(np.log(sigma), np.log(all_sigmas), np.arange(total)).round()

    require_between("final_alpha_cumprod", final_alpha_cumprod, TINY_ALPHA, 1.0)
    last_sigma = np.sqrt((1 - final_alpha_cumprod) / final_alpha_cumprod)
    sigma_next = np.append(sigma[1:], last_sigma)
    a, a_next = 1 / (1 + sigma**2), 1 / (1 + sigma_next**2)
    with np.errstate(divide="ignore"):
        log_step = np.log(sigma) - np.log(sigma_next)  # h, in half log-SNR
    step_ratio = np.append(np.inf, log_step[:-1] / log_step[1:])  # r; infinite makes a step of first order
    if last_sigma == 0 or (lower_order_final and len(t) < 15):
        step_ratio[-1] = np.inf
    towards_d = -np.sqrt(a_next) * np.expm1(-log_step)
    columns: Columns = {
        **clean_sample(prediction_type, a, clip),
        "q_x": np.sqrt((1 - a_next) / (1 - a)),
        "q_d": towards_d * (1 + 0.5 / step_ratio),
        "q_h": -towards_d * 0.5 / step_ratio,
        "u_d": 1.0,
    }
    return build_table("dpmpp_2m", schedule, t, columns, guidance_scale, guidance_interval)


@recorded
def lcm(
    schedule: NoiseSchedule,
    steps: int | None = None,
    *,
    timesteps: Sequence[float] | None = None,
    original_steps: int = 50,
    prediction_type: PredictionType = "epsilon",
    clip: float | None = None,
    guidance_scale: float = 1.0,
    guidance_interval: tuple[float, float] = (0.0, 1.0),
) -> StepTable:
    """Multistep consistency sampling of latent consistency models (Luo et al., 2023, Algorithm 3).

    Args:
        schedule: As for ``ddim``, and so are the arguments not named here.
        steps: Number of network evaluations S, 1 ≤ S ≤ ``original_steps``.
        original_steps: Steps of the solver that the model was distilled with; S of these are taken.
        guidance_scale: As for ``ddim``; models distilled with guidance folded in take 1.

    Returns:
        A table of S rows, the noisiest timestep first.

    Raises:
        ValueError: If a bound is broken; the message carries the value received.
    """
    total = schedule.num_train_timesteps
    step_count(original_steps, total, "original_steps")
    if timesteps is not None:
        t = choose_timesteps(schedule, steps, timesteps, "leading", 0)
    else:
        solver = np.arange(original_steps, 0, -1) * (total // original_steps) - 1.0
        count = step_count(steps, original_steps)
        t = solver[np.floor(np.linspace(0, original_steps, count, endpoint=False)).astype(int)]
    a, a_prev = alphas_at(schedule, t), alphas_at(schedule, np.append(t[1:], -1.0))
    c_skip, c_out = consistency(t)
    with np.errstate(divide="ignore", invalid="ignore"):
        columns: Columns = {
            **clean_sample(prediction_type, a, clip),
            "q_x": np.sqrt(a_prev) * c_skip,
            "q_d": np.sqrt(a_prev) * c_out,
            "q_z": np.sqrt(1 - a_prev),
        }
    return build_table("lcm", schedule, t, columns, guidance_scale, guidance_interval)


#: Samplers by name, as ``Engine.sample(sampler=...)`` takes them.
SAMPLERS: Mapping[str, Callable[..., StepTable]] = {
    function.__name__: cast("Callable[..., StepTable]", function)
    for function in (ddim, ddpm, ddpm_strided, dpmpp_2m, lcm, heun, euler, euler_ancestral)
}
