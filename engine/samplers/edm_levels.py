"""What samplers of EDM schedules share: noise levels, and the scalings around the network."""

from __future__ import annotations

import numpy as np

from stepfuse.samplers.coefficients import Columns, build_table
from stepfuse.samplers.schedule import EdmLevels, Float64Array, NoiseSchedule
from stepfuse.samplers.table import StepTable


def edm_of(schedule: NoiseSchedule) -> EdmLevels:
    """The noise levels of an EDM schedule; any other is refused."""
    if schedule.edm_levels is None:
        raise ValueError(f"schedule must be of EDM's kind, NoiseSchedule.edm(...), got {schedule!r}")
    return schedule.edm_levels


def output_sign(prediction_type: str) -> float:
    """Of the network's output in the clean sample, as ``NoiseSchedule.edm`` has it."""
    if prediction_type not in ("epsilon", "v_prediction"):
        raise ValueError(
            f"prediction_type must be 'epsilon' or 'v_prediction' on an EDM schedule, got {prediction_type!r}"
        )
    return 1.0 if prediction_type == "epsilon" else -1.0


def network_columns(edm: EdmLevels, sigma: Float64Array, prediction_type: str) -> Columns:
    """Input scale and line 1: Karras et al. (2022), Table 1, of c_in, c_skip and c_out."""
    both = np.hypot(sigma, edm.sigma_data)
    return {
        "s": 1 / both,
        "p_x": (edm.sigma_data / both) ** 2,
        "p_e": output_sign(prediction_type) * sigma * edm.sigma_data / both,
    }


def edm_table(
    name: str,
    schedule: NoiseSchedule,
    edm: EdmLevels,
    sigmas: Float64Array,
    columns: Columns,
    guidance_scale: float,
    guidance_interval: tuple[float, float],
    init_scale: float | None = None,
) -> StepTable:
    """A checked table of these columns, between these noise levels, shape (S + 1,), the last that of the result."""
    t = np.clip(edm.timestep_scale * np.log(sigmas[:-1]), schedule.min_timestep, schedule.max_timestep)
    return build_table(
        name,
        schedule,
        t,
        columns,
        (np.ones_like(t), sigmas[:-1]),
        guidance_scale,
        guidance_interval,
        float(np.hypot(sigmas[0], 1.0)) if init_scale is None else init_scale,  # as diffusers scales it
        (1.0, float(sigmas[-1])),
    )
