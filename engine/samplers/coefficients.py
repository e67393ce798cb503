"""What samplers are written with: timesteps, noise levels, and the coefficients that most of them share."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import wraps
from inspect import signature
from typing import Any, Literal, ParamSpec, cast

import numpy as np
import numpy.typing as npt

from stepfuse.arguments import number, plain, refuse_unknown, truth_value, whole_number
from stepfuse.samplers.levels import LevelOptions
from stepfuse.samplers.schedule import Float64Array, NoiseSchedule, Spacing, explicit_timesteps, spaced_timesteps
from stepfuse.samplers.table import StepTable

PredictionType = Literal["epsilon", "v_prediction", "sample"]
Columns = dict[str, npt.ArrayLike]
Levels = tuple[Float64Array, Float64Array]  # signal and noise of states: signal * x0 + noise * z

# What an argument annotated so must be.
_CHECKS: dict[str, Callable[[str, Any], Any]] = {"int": whole_number, "float": number, "bool": truth_value}

_LATE = 0.1  # share of the sample in the first state; that of latent diffusion's schedule at T - 1 is 0.07

# The smallest positive float16: what diffusers puts in the place of a terminal ᾱ of 0 where a sampler divides by it.
TINY_ALPHA = 2.0**-24

# A guidance scale of exactly 1 leaves out the unconditional pass; this one is next to it.
_BELOW_1 = float(np.nextafter(np.float32(1), np.float32(0)))

Arguments = ParamSpec("Arguments")


def recorded(function: Callable[Arguments, StepTable]) -> Callable[Arguments, StepTable]:
    """Has a sampler's tables carry all arguments that they were made with, but for the schedule.

    Arguments are checked to be of the kind that their annotation says; numpy's numbers become Python's.
    """
    signed = signature(function)
    kinds = {name: str(parameter.annotation).partition(" | ") for name, parameter in signed.parameters.items()}
    checks = {name: (_CHECKS[kind], bool(rest)) for name, (kind, _, rest) in kinds.items() if kind in _CHECKS}
    known = list(signed.parameters)

    @wraps(function)
    def sampler(*args: Arguments.args, **kwargs: Arguments.kwargs) -> StepTable:
        refuse_unknown(f"sampler {function.__name__!r}", known, kwargs)
        bound = signed.bind(*args, **kwargs)
        bound.apply_defaults()
        schedule = bound.arguments.pop("schedule")
        options = {name: plain(value) for name, value in bound.arguments.items()}
        for name, (check, optional) in checks.items():
            if not (optional and options[name] is None):
                options[name] = check(name, options[name])
        return replace(cast("Callable[..., StepTable]", function)(schedule, **options), options=options)

    return sampler


def step_count(steps: int | None, most: int, name: str = "steps") -> int:
    """A checked number of steps, 1 to ``most``."""
    if steps is None:
        raise ValueError(f"{name} must be given where timesteps are not")
    require_between(name, steps, 1, most)
    return steps


def match_count(steps: int | None, given: int) -> None:
    """Refuses a number of steps that contradicts the timesteps given."""
    if steps is not None and steps != given:
        raise ValueError(f"steps must be the number of timesteps, {given}, or left out, got {steps}")


def choose_timesteps(
    schedule: NoiseSchedule, steps: int | None, timesteps: Sequence[float] | None, spacing: Spacing, steps_offset: int
) -> Float64Array:
    """The caller's timesteps if there are any, else ``steps`` of them spaced as named; the noisiest first."""
    total = schedule.num_train_timesteps
    if timesteps is not None:
        chosen = explicit_timesteps(total, timesteps)
        match_count(steps, len(chosen))
        return chosen
    chosen = spaced_timesteps(total, step_count(steps, total), spacing, steps_offset)
    warn_of_late_start(schedule, chosen, spacing)
    return chosen


def warn_of_late_start(schedule: NoiseSchedule, t: Float64Array, spacing: Spacing) -> None:
    """Warns where leading timesteps, whose stride is T // S, leave out so much that more steps give worse samples."""
    total, count = schedule.num_train_timesteps, len(t)
    signal = float(np.sqrt(alphas_at(schedule, t[:1])[0]))
    if spacing == "leading" and total - count * (total // count) >= total // count and signal > _LATE:
        warnings.warn(
            f"leading spacing begins at timestep {t[0]:g} of {total - 1}, where {signal:.2g} of the sample is left, as"
            f" if it were noise: take spacing='trailing', or a number of steps that divides {total}",
            stacklevel=5,
        )


def next_timesteps(schedule: NoiseSchedule, t: Float64Array, *, fixed_stride: bool) -> Float64Array:
    """The timestep that each DDIM step leads to, as ``ddim`` says of ``fixed_stride``; below 0: the clean sample."""
    return t - schedule.num_train_timesteps // len(t) if fixed_stride else np.append(t[1:], -1.0)


def require_between(name: str, value: float, low: float, high: float) -> None:
    """Refuses a value out of bounds, NaN included."""
    if not low <= value <= high:
        raise ValueError(f"{name} must be between {low:g} and {high:g}, got {value}")


def refuse_on_flows(**given: tuple[object, object]) -> None:
    """Refuses arguments that mean nothing on a flow schedule: each with its value and its default."""
    _refuse("with a flow schedule", given)


def refuse_without_flow(**given: tuple[object, object]) -> None:
    """The same for arguments that mean something on a flow schedule alone."""
    _refuse("without a flow schedule", given)


def _refuse(where: str, given: Mapping[str, tuple[object, object]]) -> None:
    for name, (value, default) in given.items():
        if value != default:
            raise ValueError(f"{name} must be left out {where}, got {value!r}")


def flow_ramp(steps: int, spacing: str, last: float) -> Float64Array:
    """Levels of a flow before its shift, S of them in equal steps down from 1: to ``last``, or trailing to 1 / S.

    Raises:
        ValueError: If ``spacing`` is neither ``linspace`` nor ``trailing``.
    """
    if spacing not in ("linspace", "trailing"):
        raise ValueError(f"spacing must be 'linspace' or 'trailing' with a flow schedule, got {spacing!r}")
    return np.linspace(1.0, 1.0 / steps if spacing == "trailing" else last, steps)


def flow_sigmas(
    schedule: NoiseSchedule,
    steps: int | None,
    timesteps: Sequence[float] | None,
    options: LevelOptions,
    spacing: str = "linspace",
) -> Float64Array:
    """Noise levels of a run on a flow, the noisiest first: the caller's timesteps over T, else those of ``options``.

    Raises:
        ValueError: If levels are not within the schedule, or ``"lu"``, or as ``flow_ramp`` does.
    """
    total, shift = schedule.num_train_timesteps, schedule.shift or 1.0
    if options.kind == "lu":
        raise ValueError("levels must be other than 'lu' with a flow, whose log-SNR has no end, got 'lu'")
    if timesteps is not None:
        times = explicit_timesteps(total + 1, timesteps)
        match_count(steps, len(times))
        return times / total
    given = options.own(steps, 1.0 / total, 1.0)
    if given is None:
        last = 1.0 / total
        if options.shift is None:  # diffusers shifts both the ends and what lies between
            last = shift * last / (1 + (shift - 1) * last)
        given = flow_ramp(step_count(steps, total), spacing, last)
    sigma = options.shifted(np.minimum(given, 1.0), schedule)
    if options.follow_rule:
        sigma = options.between((float(sigma[-1]), float(sigma[0])), (1.0 / total, 1.0), len(sigma))
    return sigma


def alphas_at(schedule: NoiseSchedule, t: Float64Array, final: float = 1.0) -> Float64Array:
    """ᾱ at each timestep; ``final`` where t is below 0, past the last one."""
    last = schedule.num_train_timesteps - 1
    if t.max() > last:
        raise ValueError(f"timesteps[{int(np.argmax(t))}] must be at most {last}, got {t.max():g}")
    return np.where(t >= 0, schedule.alphas_cumprod_at(np.maximum(t, 0.0)), final)


def sigmas_of(schedule: NoiseSchedule, prediction_type: str) -> Float64Array:
    """Noise over signal at every training timestep, finite also where ᾱ is 0."""
    alphas = schedule.alphas_cumprod
    if alphas[-1] == 0 and prediction_type == "epsilon":
        raise ValueError(
            f"alphas_cumprod[{len(alphas) - 1}] must be above 0 with epsilon prediction, got 0.0: use v_prediction or"
            " sample, or a schedule without zero terminal SNR"
        )
    alphas = np.where(alphas == 0, TINY_ALPHA, alphas)
    return cast("Float64Array", np.sqrt((1 - alphas) / alphas))


def sigmas_at(all_sigmas: Float64Array, t: Float64Array) -> Float64Array:
    """Noise over signal at timesteps, the noisiest first, interpolated between whole ones.

    Where the last ᾱ of 0 gives way to ``TINY_ALPHA``, the one before may be smaller yet: with both among the timesteps
    the noise would rise. The first level is then taken above the second; diffusers' ancestral steps are NaN there.
    """
    sigma = np.interp(t, np.arange(len(all_sigmas)), all_sigmas)
    if len(sigma) > 1 and sigma[0] <= sigma[1]:
        sigma[0] = 2 * sigma[1]
    return sigma


def timesteps_of(all_sigmas: Float64Array, sigma: Float64Array) -> Float64Array:
    """Timesteps at which noise over signal is ``sigma``; its logarithm is interpolated."""
    rising = np.maximum.accumulate(all_sigmas)
    return np.interp(np.log(sigma), np.log(rising), np.arange(len(rising)))


def preserving_levels(a: Float64Array) -> Levels:
    """Signal and noise of variance-preserving states at signal share ``a``."""
    return np.sqrt(a), np.sqrt(1 - a)


def clean_sample(prediction_type: str, a: Float64Array, clip: float | None) -> Columns:
    """Line 1: the clean sample that the network's output implies at signal share ``a``, and its bounds."""
    if clip is not None and not clip > 0:
        raise ValueError(f"clip must be above 0, or None, got {clip}")
    bounds: Columns = {} if clip is None else {"lo": -clip, "hi": clip}
    root, noise = np.sqrt(a), np.sqrt(1 - a)
    if prediction_type == "epsilon":
        with np.errstate(divide="ignore"):
            return {"p_x": 1 / root, "p_e": -noise / root, **bounds}
    if prediction_type == "v_prediction":
        return {"p_x": root, "p_e": -noise, **bounds}
    if prediction_type == "sample":
        return {"p_x": np.zeros_like(a), "p_e": np.ones_like(a), **bounds}
    raise ValueError(f"prediction_type must be 'epsilon', 'v_prediction' or 'sample', got {prediction_type!r}")


def eps_from(
    prediction_type: str, a: Float64Array, *, from_clipped: bool
) -> tuple[Float64Array, Float64Array, Float64Array]:
    """The noise estimate as weights of (x, d, e)."""
    root, noise, zero = np.sqrt(a), np.sqrt(1 - a), np.zeros_like(a)
    if from_clipped:
        return 1 / noise, -root / noise, zero
    if prediction_type == "epsilon":
        return zero, zero, np.ones_like(a)
    if prediction_type == "v_prediction":
        return noise, zero, root
    return 1 / noise, zero, -root / noise


def ancestral(
    prediction_type: str, t: Float64Array, a: Float64Array, a_prev: Float64Array, variance: str, clip: float | None
) -> Columns:
    """Mean and variance of Ho et al. (2020), Eq. 6 and 7, for a jump from signal share ``a`` to ``a_prev``."""
    if variance not in ("beta", "posterior"):
        raise ValueError(f"variance must be 'beta' or 'posterior', got {variance!r}")
    with np.errstate(divide="ignore", invalid="ignore"):
        alpha = a / a_prev
        beta = 1 - alpha
        posterior = beta * (1 - a_prev) / (1 - a)
        return {
            **clean_sample(prediction_type, a, clip),
            "q_x": np.sqrt(alpha) * (1 - a_prev) / (1 - a),
            "q_d": np.sqrt(a_prev) * beta / (1 - a),
            "q_z": np.where(t > 0, np.sqrt(beta if variance == "beta" else posterior), 0.0),
        }


def implicit(
    prediction_type: str, a: Float64Array, a_prev: Float64Array, eta: float, clip: float | None, *, clipped_eps: bool
) -> Columns:
    """Song et al. (2021), Eq. 12 with the variance of Eq. 16, for a jump from signal share ``a`` to ``a_prev``."""
    with np.errstate(divide="ignore", invalid="ignore"):
        sigma = eta * np.sqrt((1 - a_prev) / (1 - a) * (1 - a / a_prev))
        # With eta = 1 at ᾱ = 0 the two cancel, and rounding may leave less than nothing.
        towards_x = np.sqrt(np.maximum(1 - a_prev - sigma**2, 0.0))
        x_to_eps, d_to_eps, e_to_eps = eps_from(prediction_type, a, from_clipped=clipped_eps)
        return {
            **clean_sample(prediction_type, a, clip),
            "q_x": towards_x * x_to_eps,
            "q_d": np.sqrt(a_prev) + towards_x * d_to_eps,
            "q_e": towards_x * e_to_eps,
            "q_z": sigma,
        }


def consistency(t: Float64Array, timestep_scaling: float = 10.0) -> tuple[Float64Array, Float64Array]:
    """Weights of (x, d) in a consistency function: Luo et al. (2023), Eq. 4 and appendix."""
    sigma_data = 0.5
    scaled = timestep_scaling * t
    return sigma_data**2 / (scaled**2 + sigma_data**2), scaled / np.sqrt(scaled**2 + sigma_data**2)


def build_table(
    name: str,
    schedule: NoiseSchedule,
    t: Float64Array,
    columns: Columns,
    levels: Levels,
    guidance_scale: float,
    guidance_interval: tuple[float, float],
    init_scale: float = 1.0,
    last_level: tuple[float, float] = (1.0, 0.0),
    *,
    cfg_pp: bool = False,
) -> StepTable:
    """A checked table of these columns, with guidance where the interval has it on.

    Args:
        name: The sampler's.
        schedule: Its noise levels.
        t: Timesteps, shape (S,).
        columns: As in ``StepTable.from_columns``.
        levels: Signal and noise of the state before each row, each of shape (S,).
        guidance_scale: As for ``ddim``.
        guidance_interval: As for ``ddim``.
        init_scale: As in ``StepTable``.
        last_level: Signal and noise of the result.
        cfg_pp: As for ``ddim``; what ``q_e`` weighs is then the noise that is put back, and nothing else.
    """
    if not (np.isfinite(guidance_scale) and guidance_scale >= 0):
        raise ValueError(f"guidance_scale must be at least 0 and finite, got {guidance_scale}")
    start, stop = guidance_interval
    if not 0 <= start < stop <= 1:
        raise ValueError(
            f"guidance_interval must be (start, stop) with 0 <= start < stop <= 1, got {guidance_interval}"
        )
    time = (t - schedule.min_timestep) / (schedule.max_timestep - schedule.min_timestep or 1.0)
    guided = (time >= start) & (time <= stop)
    if cfg_pp:
        columns, guidance_scale = _cfg_pp(columns, guidance_scale, guided)
    return StepTable.from_columns(
        {"t": t, "g": np.where(guided, guidance_scale, 1.0), **columns},
        sampler=name,
        init_scale=init_scale,
        levels=np.append(np.stack(levels, axis=1), [last_level], axis=0),
        max_timestep=schedule.max_timestep,
        min_timestep=schedule.min_timestep,
    )


def _cfg_pp(columns: Columns, guidance_scale: float, guided: npt.NDArray[np.bool_]) -> tuple[Columns, float]:
    """CFG++ of Chung et al. (2024): a guided step puts noise back by the unconditional prediction."""
    if guidance_scale > 1:
        raise ValueError(f"guidance_scale must be between 0 and 1 with cfg_pp, got {guidance_scale}")
    if guidance_scale == 0 or not guided.any():  # one pass a step, which both predictions are
        return columns, guidance_scale
    weight = np.asarray(columns["q_e"])
    parted = {"q_e": np.where(guided, 0.0, weight), "q_u": np.where(guided, weight, 0.0)}
    return {**columns, **parted}, min(guidance_scale, _BELOW_1)
