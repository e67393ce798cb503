"""Consistency models in the states of EDM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from stepfuse.samplers.coefficients import Columns, match_count, recorded, require_between, step_count
from stepfuse.samplers.edm_levels import edm_of, edm_table, network_columns, output_sign
from stepfuse.samplers.levels import LevelOptions
from stepfuse.samplers.schedule import NoiseSchedule, explicit_timesteps
from stepfuse.samplers.table import StepTable


@recorded
def cm(
    schedule: NoiseSchedule,
    steps: int | None = None,
    *,
    timesteps: Sequence[float] | None = None,
    prediction_type: Literal["epsilon", "v_prediction"] = "epsilon",
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
        rho: As for ``euler``.
        s_noise: Scale of the noise that is added, at least 0.
        guidance_scale: As for ``ddim``.
        guidance_interval: As for ``edm_euler``.

    Returns:
        A table of S rows, the noisiest level first.

    Raises:
        ValueError: As for ``edm_euler``, and if ``timesteps`` do not fall or lie outside of 0 to T - 1, ``s_noise`` is
            negative or ``clip`` not above 0.
        TypeError: If ``steps`` is no whole number.

    Examples:
        >>> table = sf.samplers.cm(sf.NoiseSchedule.edm(), steps=2)
        >>> len(table), table.passes, len(table.columns)
        (2, 2, 16)
    """
    edm, total = edm_of(schedule), schedule.num_train_timesteps
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
    ends = edm.sigma_min, edm.sigma_max
    sigma = LevelOptions("karras", rho=rho).between(ends, ends, total)[places.astype(int)]
    after = np.append(sigma[1:], edm.sigma_min)
    # Scaled so that at sigma_min the clean sample is the state itself (Appendix C).
    above = sigma - edm.sigma_min
    columns: Columns = {
        **network_columns(edm, sigma, prediction_type),
        "p_x": edm.sigma_data**2 / (above**2 + edm.sigma_data**2),
        "p_e": output_sign(prediction_type) * above * edm.sigma_data / np.hypot(sigma, edm.sigma_data),
        "q_d": 1.0,
        "q_z": s_noise * np.sqrt(np.maximum(after**2 - edm.sigma_min**2, 0.0)),
    }
    if clip is not None:
        columns |= {"lo": -clip, "hi": clip}
    sigmas = np.append(sigma, 0.0)
    return edm_table("cm", schedule, edm, sigmas, columns, guidance_scale, guidance_interval, float(sigma[0]))
