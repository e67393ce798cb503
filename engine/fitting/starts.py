"""Where a fit may begin: samplers without memory, on timesteps spaced in several ways."""

from __future__ import annotations

import numpy as np

from stepfuse.bundle.model_info import ModelInfo
from stepfuse.fitting.student import Student
from stepfuse.samplers import SAMPLERS
from stepfuse.samplers.coefficients import sigmas_of, timesteps_of
from stepfuse.samplers.levels import LevelOptions


def starts(info: ModelInfo, steps: int, guidance_scale: float, registers: int) -> list[Student]:
    """Students of a step count, before they are fitted.

    Args:
        info: The model.
        steps: How many steps.
        guidance_scale: As for samplers.
        registers: As in ``Student.of``.

    Raises:
        ValueError: If the model's schedule does not take so many steps.
    """
    schedule = info.schedule
    if schedule.is_flow:
        tables = [SAMPLERS["euler"](schedule, steps, guidance_scale=guidance_scale)]
    else:
        given = {"prediction_type": info.prediction_type, "guidance_scale": guidance_scale}
        tables = [SAMPLERS["ddim"](schedule, steps, spacing=one, **given) for one in ("trailing", "linspace")]
        levels = sigmas_of(schedule, info.prediction_type)
        ends = float(levels[0]), float(levels[-1])
        sigma = LevelOptions("karras").between(ends, ends, steps + 1)[:-1]
        karras = np.unique(timesteps_of(levels, sigma).round())[::-1]
        if len(karras) == steps:
            tables.append(SAMPLERS["ddim"](schedule, timesteps=karras.tolist(), **given))
    return [Student.of(table, guidance_scale, schedule.max_timestep, registers) for table in tables]
