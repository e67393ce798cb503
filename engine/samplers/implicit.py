"""DDIM."""

from __future__ import annotations

from collections.abc import Sequence

from stepfuse.samplers.coefficients import (
    PredictionType,
    alphas_at,
    build_table,
    choose_timesteps,
    implicit,
    next_timesteps,
    preserving_levels,
    recorded,
    require_between,
)
from stepfuse.samplers.schedule import NoiseSchedule, Spacing
from stepfuse.samplers.table import StepTable


@recorded
def ddim(
    schedule: NoiseSchedule,
    steps: int | None = None,
    *,
    timesteps: Sequence[float] | None = None,
    spacing: Spacing = "leading",
    steps_offset: int = 0,
    fixed_stride: bool = False,
    prediction_type: PredictionType = "epsilon",
    clip: float | None = None,
    clipped_eps: bool = False,
    eta: float = 0.0,
    final_alpha_cumprod: float = 1.0,
    cfg_pp: bool = False,
    guidance_scale: float = 1.0,
    guidance_interval: tuple[float, float] = (0.0, 1.0),
) -> StepTable:
    """DDIM of Song et al. (2021), Eq. 12: any subset of the training timesteps, taken backwards.

    Args:
        schedule: Noise levels the network was trained with, variance-preserving.
        steps: Number of network evaluations S, 1 ≤ S ≤ T. May be left out where ``timesteps`` are given.
        timesteps: Timesteps of one's own, strictly decreasing, instead of ``spacing``; each step leads to the next one.
        spacing: Which S timesteps are taken: ``leading`` (0, T // S, ...), ``trailing`` (T - 1, T - 1 - T / S, ...) or
            ``linspace`` (from T - 1 to 0), as in diffusers. Where S is large and does not divide T, leading ones begin
            where much of the sample is left, and a warning says so.
        steps_offset: Added to ``leading`` timesteps.
        fixed_stride: Whether a step leads from t to t - T // S, as in diffusers' ``DDIMScheduler``, instead of to the
            next timestep. The two differ with ``trailing`` and ``linspace`` where T is no multiple of S: a step then
            ends at another noise level than the next one starts from, and at large S the samples are wrong. It is here
            for the same images as diffusers; given ``timesteps`` are always led to one by one.
        prediction_type: What the network predicts: ``epsilon``, ``v_prediction`` or ``sample``.
        clip: The implied clean sample is clamped to [-clip, clip]; None leaves it alone.
        clipped_eps: Whether the noise estimate is derived again from the clamped sample.
        eta: Share of DDPM's noise that is added back (Eq. 16), 0 (deterministic) to 1.
        final_alpha_cumprod: ᾱ of the state after the last step: 1 for a clean sample.
        cfg_pp: Whether guidance is CFG++ (Chung et al., 2024): the guided prediction gives the clean sample, the
            unconditional one the noise that is put back. ``guidance_scale`` is then their λ, 0 to 1.
        guidance_scale: Classifier-free guidance (Ho & Salimans, 2022); 1 means one network pass a step instead of two.
        guidance_interval: Guidance is on while t / (T - 1) lies within these bounds, 1 being the noisiest
            (Kynkäänniemi et al., 2024); elsewhere the conditional pass stands alone.

    Returns:
        A table of S rows, the noisiest timestep first.

    Raises:
        ValueError: If ``steps`` is not within 1 to T or contradicts ``timesteps``, ``timesteps`` do not fall or lie
            outside of the schedule, ``eta`` or ``final_alpha_cumprod`` is not within 0 to 1, ``guidance_scale`` is
            negative, ``guidance_interval`` is no (start, stop) in [0, 1], the schedule is a flow or has ᾱ = 0 where
            ``prediction_type`` is ``epsilon``, or with ``cfg_pp`` ``guidance_scale`` is above 1 or ``clipped_eps`` is
            given.
        TypeError: If ``steps`` is no whole number.

    Examples:
        >>> table = sf.samplers.ddim(sf.NoiseSchedule.linear(), steps=20, eta=0.0, guidance_scale=3.0)
        >>> len(table), table.passes, len(table.columns)
        (20, 40, 16)
    """
    require_between("eta", eta, 0.0, 1.0)
    require_between("final_alpha_cumprod", final_alpha_cumprod, 0.0, 1.0)
    if cfg_pp and clipped_eps:
        raise ValueError("clipped_eps must be left out with cfg_pp, which takes the noise as predicted, got True")
    t = choose_timesteps(schedule, steps, timesteps, spacing, steps_offset)
    prev_t = next_timesteps(schedule, t, fixed_stride=fixed_stride and timesteps is None)
    a, a_prev = alphas_at(schedule, t), alphas_at(schedule, prev_t, final_alpha_cumprod)
    columns = implicit(prediction_type, a, a_prev, eta, clip, clipped_eps=clipped_eps)
    levels = preserving_levels(a)
    return build_table("ddim", schedule, t, columns, levels, guidance_scale, guidance_interval, cfg_pp=cfg_pp)
