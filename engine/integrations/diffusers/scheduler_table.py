"""A diffusers scheduler, after ``set_timesteps``, as a table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from stepfuse.integrations.scheduler_config import SchedulerSettings, read_scheduler
from stepfuse.samplers import SAMPLERS
from stepfuse.samplers.coefficients import sigmas_of
from stepfuse.samplers.levels import without_overridden
from stepfuse.samplers.schedule import NoiseSchedule
from stepfuse.samplers.table import COLUMNS, StepTable

# Relative: diffusers keeps timesteps, and multiplies up alphas_cumprod, in float32.
_TIMESTEPS, _SIGNAL = 1e-5, 1e-4
# Of a noise level: its logarithm is interpolated in float32.
_LEVELS = 2e-4
# Samplers that round Karras' timesteps, with the rows that they have for each level.
_ROUNDED = {"dpmpp_2m": 1, "dpmpp_2m_sde": 1, "deis": 1, "unipc": 1, "dpmpp_2s": 1, "kdpm2": 2, "kdpm2_ancestral": 2}
# Samplers with stages between their levels, whose timesteps are interpolated.
_MIDWAY = ("kdpm2", "kdpm2_ancestral", "dpmpp_sde")
# Schedulers whose runs go wrong in diffusers where they begin in the middle, and how.
_FROM_THE_START = {
    "plms": ("PNDMScheduler", "steps from other noise levels than its state has"),
    "lms": ("LMSDiscreteScheduler", "weighs more slopes than it has, and leaves out what they would add"),
}


def settings_of(scheduler: Any) -> SchedulerSettings:
    """A scheduler's settings.

    Raises:
        ValueError: If the scheduler is not covered, or its ``shift`` or ``alphas_cumprod`` are not those of its
            configuration.
    """
    name = getattr(scheduler, "class_name", type(scheduler).__name__)  # ours may have subclasses of another name
    config = {**scheduler.config, **getattr(scheduler, "own_entries", {}), "_class_name": name}
    settings = _read(json.dumps(config, sort_keys=True, default=_plain))
    if settings.schedule.is_flow:
        own = isinstance(getattr(type(scheduler), "shift", None), property)  # others read their configuration
        if own and scheduler.shift != settings.schedule.shift:
            raise ValueError(
                f"{name}: shift must be the configuration's {settings.schedule.shift}, got {scheduler.shift}"
            )
    elif not settings.schedule.is_edm and not np.allclose(
        scheduler.alphas_cumprod, settings.schedule.alphas_cumprod, rtol=_SIGNAL, atol=1e-6
    ):
        raise ValueError(f"{name}: alphas_cumprod must be those of its configuration, got others")
    return settings


def is_covered(scheduler: Any) -> bool:
    """Whether ``settings_of`` takes a scheduler."""
    try:
        settings_of(scheduler)
    except ValueError:
        return False
    return True


def table_of(
    scheduler: Any,
    custom: Mapping[str, Any],
    *,
    guidance_scale: float = 1.0,
    guidance_rescale: float = 0.0,
    eta: float | None = None,
    order: int | None = None,
    clipped_eps: bool = False,
) -> StepTable:
    """The table of a scheduler's steps at its timesteps.

    Args:
        scheduler: After ``set_timesteps``.
        custom: ``timesteps`` or ``sigmas`` of ``set_timesteps``, where given.
        guidance_scale: The pipeline's.
        guidance_rescale: As in ``StepTable.adapt``.
        eta: The pipeline's, which DDIM and TCD read; None: their own default.
        order: LMS' own, an argument of its step; None: 4.
        clipped_eps: ``use_clipped_model_output``; only DDIM reads it.

    Raises:
        ValueError: If the scheduler is not covered, or its timesteps are not those of the sampler.
    """
    settings = settings_of(scheduler)
    options = dict(settings.defaults)
    sampler, threshold = options.pop("sampler"), options.pop("dynamic_threshold", None)
    if not settings.schedule.is_flow:
        options["prediction_type"] = settings.prediction_type
    if sampler == "ddim":
        options["clipped_eps"] = bool(clipped_eps)
    if sampler in ("ddim", "tcd") and eta is not None:
        options["eta"] = float(eta)
    if sampler == "lms" and order is not None:
        options["order"] = order
    given = _steps(scheduler, custom, settings)
    options = without_overridden(options, given)
    table = SAMPLERS[sampler](settings.schedule, guidance_scale=float(guidance_scale), **options, **given)
    wanted = np.asarray(scheduler.timesteps.cpu(), dtype=np.float64)
    chosen = "sigmas" in given or options.get("karras") or options.get("levels", "schedule") != "schedule"
    has_whole_timesteps = not (settings.schedule.is_flow or settings.schedule.is_edm)
    between = (chosen and has_whole_timesteps) or sampler in _MIDWAY
    if between and _same_levels(settings, table, scheduler, wanted):
        table = _at_timesteps(table, wanted)
    if settings.schedule.is_flow and custom.get("timesteps") is not None and len(wanted) == len(table):
        table = _at_timesteps(table, wanted)  # a flow's levels are apart from timesteps that are given
    if len(wanted) != len(table) or not np.allclose(table["t"], wanted, rtol=_TIMESTEPS, atol=_TIMESTEPS):
        raise ValueError(
            f"{type(scheduler).__name__}: timesteps must be those of sampler {sampler!r},"
            f" {np.array2string(table['t'], threshold=6)}, got {np.array2string(wanted, threshold=6)}"
        )
    return table.adapt(guidance_rescale=float(guidance_rescale), dynamic_threshold=threshold)


def table_from_row(table: StepTable, row: int, schedule: NoiseSchedule) -> tuple[StepTable, npt.NDArray[np.float32]]:
    """The steps from a row on, without their noise, which comes from diffusers' generators.

    Args:
        table: As of ``table_of``.
        row: The first of its rows.
        schedule: Noise levels that it was made for.

    Returns:
        The table, whose initial state is not scaled, and the weight of each step's noise, shape (S,).

    Raises:
        ValueError: If a run of ``PNDMScheduler`` or ``LMSDiscreteScheduler`` begins in the middle.
    """
    if row and table.sampler in _FROM_THE_START:
        name, why = _FROM_THE_START[table.sampler]
        raise ValueError(
            f"a run of {name} must begin at its first timestep, got entry {row} of them: from there diffusers {why};"
            " take another scheduler, or call pipe.original"
        )
    rest = rest_of(table, row, schedule)
    rows, q_z = np.array(rest.rows), COLUMNS.index("q_z")
    noise_scales = rows[:, q_z].copy()
    rows[:, q_z] = 0
    return replace(rest, rows=rows, init_scale=1.0), noise_scales


def rest_of(table: StepTable, row: int, schedule: NoiseSchedule) -> StepTable:
    """The steps from a row on, as diffusers begins there: the first step of a multistep solver is of first order."""
    rest = table[row:]
    rows = np.array(rest.rows)
    q_d, q_h = (COLUMNS.index(name) for name in ("q_d", "q_h"))
    if row and "begin" in table.options:
        rows = np.array(SAMPLERS[table.sampler](schedule, **{**table.options, "begin": row}).rows)
        rows[:, COLUMNS.index("t")] = rest["t"]
    elif row:  # it uses its own estimate in place of the last
        rows[0, q_d] += rows[0, q_h]
        rows[0, q_h] = 0
    return replace(rest, rows=rows)


def _same_levels(
    settings: SchedulerSettings, table: StepTable, scheduler: Any, wanted: npt.NDArray[np.float64]
) -> bool:
    """Whether a scheduler with Karras' noise levels, or levels between those of its timesteps, has those of the table.

    It finds its timesteps by logarithms and interpolation in float32, so they differ by more than timesteps that are
    counted, and by a whole one where a tie is rounded.
    """
    if len(wanted) != len(table):
        return False
    if table.sampler in _ROUNDED:
        stride = _ROUNDED[table.sampler]
        sigmas = np.asarray(scheduler.sigmas[: len(table) : stride].cpu(), dtype=np.float64)
        signal, noise = np.transpose(cast("npt.NDArray[np.float64]", table.levels)[:-1:stride])
        same = np.allclose(sigmas, noise / signal, rtol=_LEVELS, atol=0)
        return same and bool(np.all(np.abs(table["t"] - wanted) <= 1))
    levels = sigmas_of(settings.schedule, settings.prediction_type)
    log_levels, timesteps = np.log(levels), np.arange(len(levels))
    apart = np.interp(table["t"], timesteps, log_levels) - np.interp(wanted, timesteps, log_levels)
    return bool(np.all(np.abs(apart) <= _LEVELS))


def _at_timesteps(table: StepTable, timesteps: npt.NDArray[np.float64]) -> StepTable:
    """The same steps, with these timesteps given to the network."""
    rows = np.array(table.rows)
    rows[:, COLUMNS.index("t")] = timesteps
    return replace(table, rows=rows)


def _plain(value: Any) -> Any:
    """What JSON has no form for, as numbers, or as text where it is none, a function say."""
    numbers = np.asarray(value)
    return repr(value) if numbers.dtype == object else numbers.tolist()


@lru_cache(maxsize=16)
def _read(config: str) -> SchedulerSettings:
    return read_scheduler(json.loads(config))


def _steps(scheduler: Any, custom: Mapping[str, Any], settings: SchedulerSettings) -> dict[str, Any]:
    """The sampler's argument that has it step where the scheduler does."""
    given = [name for name, value in custom.items() if value is not None]
    if settings.defaults["sampler"] == "tcd":  # its strength and original steps are arguments of set_timesteps, too
        return {"timesteps": scheduler.timesteps.tolist()}
    if not given and settings.dynamic_shift is None:
        return {"steps": int(scheduler.num_inference_steps)}
    if settings.schedule.is_flow and settings.defaults["sampler"] in ("euler", "lcm"):
        sigmas = np.asarray(scheduler.sigmas[:-1], dtype=np.float64)
        return {"timesteps": sigmas * settings.schedule.num_train_timesteps}
    if "timesteps" in given:
        return {"timesteps": list(custom["timesteps"])}
    sigmas, name = np.asarray(custom["sigmas"], dtype=np.float64).tolist(), type(scheduler).__name__
    if not settings.schedule.is_flow and sigmas[-1:] != [0.0]:
        raise ValueError(f"sigmas must end at 0 with {name}, got {sigmas}: append it")
    return {"sigmas": sigmas}
