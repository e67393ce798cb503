"""DPM-Solver++ by single steps: intervals of two or three timesteps, each from the state that it began with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from stepfuse.samplers.coefficients import (
    Columns,
    PredictionType,
    build_table,
    preserving_levels,
    recorded,
    require_between,
)
from stepfuse.samplers.exponential import ExponentialIntegrator
from stepfuse.samplers.forms import H2, Form, H, Update, columns_of
from stepfuse.samplers.levels import LevelKind, LevelOptions
from stepfuse.samplers.log_snr import solver_levels
from stepfuse.samplers.schedule import NoiseSchedule, Spacing
from stepfuse.samplers.table import StepTable

# Estimates that an interval has yet to make, by their place in it.
_SECOND, _THIRD = Form({"second": 1.0}), Form({"third": 1.0})


@recorded
def dpmpp_2s(
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
    solver_type: Literal["midpoint", "heun"] = "midpoint",
    lower_order_final: bool = False,
    predict_x0: bool = True,
    final_alpha_cumprod: float = 1.0,
    begin: int = 0,
    guidance_scale: float = 1.0,
    guidance_interval: tuple[float, float] = (0.0, 1.0),
) -> StepTable:
    """DPM-Solver++(2S) of Lu et al. (2022b), Algorithm 1, and its third order; or DPM-Solver of Lu et al. (2022a).

    An interval is ``order`` timesteps, a network pass each: every one of its steps begins anew at the interval's first
    state, with the estimates found since. What a later step needs of the first is kept in the registers.

    Args:
        schedule: As for ``dpmpp_2m``, and so are the arguments not named here.
        steps: Number of network evaluations S, 1 ≤ S < T; there are S / ``order`` intervals.
        order: Timesteps in an interval, 1 to 3; of order 1 it is DDIM's step at these levels. A rest is an interval of
            its own, of lower order.
        solver_type: ``"midpoint"`` takes the slope from the latest estimate; ``"heun"`` integrates exactly what passes
            through all of an interval's.
        lower_order_final: Whether the last step, too, is an interval of its own. Towards a clean sample it always is.
        predict_x0: Whether the clean sample is the estimate; False: the noise, as in the original DPM-Solver.
        begin: How many of the first steps are left out; the first that is left begins an interval.

    Returns:
        A table of S - ``begin`` rows, the noisiest timestep first; of one line up to order 2.

    Raises:
        ValueError: As for ``dpmpp_2m``, but that ``order`` may be 3, and if ``begin`` leaves no step.
        TypeError: If ``steps``, ``order`` or ``begin`` is no whole number.

    Examples:
        >>> table = sf.samplers.dpmpp_2s(sf.NoiseSchedule.linear(), steps=10)
        >>> len(table), table.passes, len(table.columns)
        (10, 10, 16)
    """
    require_between("order", order, 1, 3)
    if solver_type not in ("midpoint", "heun"):
        raise ValueError(f"solver_type must be 'midpoint' or 'heun', got {solver_type!r}")
    options = LevelOptions(levels, karras, rho, sigma_min, sigma_max, sigmas, timesteps)
    t, ratios = solver_levels(
        schedule, steps, timesteps, spacing, steps_offset, prediction_type, final_alpha_cumprod, options
    )
    require_between("begin", begin, 0, len(t) - 1)
    starts = np.arange(len(t)) % order == 0
    starts[-1] |= ratios[-1] == 0 or (lower_order_final and len(t) % order == 0)
    t, ratios, starts = t[begin:], ratios[begin:], starts[begin:]
    starts[0] = True

    solver = ExponentialIntegrator(ratios, prediction_type, clip, predict_x0=predict_x0)
    updates: list[Update] = []
    for steps_of in np.split(np.arange(len(t)), np.flatnonzero(starts)[1:]):
        updates += _interval(solver, int(steps_of[0]), len(steps_of), solver_type)
    columns: Columns = {**solver.line_1, **columns_of(updates)}
    states = preserving_levels(1 / (1 + ratios[:-1] ** 2))
    return build_table("dpmpp_2s", schedule, t, columns, states, guidance_scale, guidance_interval)


def _interval(solver: ExponentialIntegrator, start: int, length: int, solver_type: str) -> list[Update]:
    """The rows of an interval from the step ``start`` on; ``length`` is its order."""
    first, *later = solver.estimates[start : start + length]
    rows = [Update(solver.step(start, start + 1))]
    if length == 1:
        return rows
    slope = 1 / solver.place(start + 1, start, start + 2) * (_SECOND - first)
    second = solver.step(start, start + 2, slope, midpoint=solver_type == "midpoint")
    rows = [Update(rows[0].x, h=_known(second)), Update(H + second.weights["second"] * later[0])]
    if length == 2:
        return rows
    near, far = (solver.place(start + k, start, start + 3) for k in (1, 2))
    to_near, to_far = 1 / near * (_SECOND - first), 1 / far * (_THIRD - first)
    if solver_type == "midpoint":
        third = solver.step(start, start + 3, to_far)
    else:
        bend = 2 / (far - near) * (to_far - to_near)
        third = solver.step(start, start + 3, to_near - near / 2 * bend, bend)
    return [
        Update(rows[0].x, h=rows[0].h, h2=_known(third)),
        Update(rows[1].x, h=H2 + third.weights.get("second", 0.0) * later[0]),
        Update(H + third.weights["third"] * later[1]),
    ]


def _known(form: Form) -> Form:
    """What a form has of an interval's first step."""
    return Form({name: weight for name, weight in form.weights.items() if name not in ("second", "third")})
