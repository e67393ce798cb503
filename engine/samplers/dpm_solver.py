"""DPM-Solver++ by multistep: the state is extrapolated with the estimates of the steps before."""

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
    refuse_on_flows,
    refuse_without_flow,
    require_between,
)
from stepfuse.samplers.exponential import ExponentialIntegrator
from stepfuse.samplers.forms import H2, ZERO, Form, H, Update, columns_of
from stepfuse.samplers.levels import LevelKind, LevelOptions
from stepfuse.samplers.log_snr import flow_levels, solver_levels
from stepfuse.samplers.schedule import NoiseSchedule, Spacing
from stepfuse.samplers.table import StepTable


@recorded
def dpmpp_2m(
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
    lower_order_final: bool = True,
    euler_at_final: bool = False,
    predict_x0: bool = True,
    final_alpha_cumprod: float = 1.0,
    shift: float | None = None,
    begin: int = 0,
    guidance_scale: float = 1.0,
    guidance_interval: tuple[float, float] = (0.0, 1.0),
) -> StepTable:
    """DPM-Solver++(2M) of Lu et al. (2022b), Algorithm 2, and its third order; or DPM-Solver of Lu et al. (2022a).

    The registers hold the estimates of the last one or two steps. Third order has the weights of the authors' code and
    of diffusers, which take half of what the exact integral gives the second derivative: its error, too, falls as in
    second order.

    Args:
        schedule: As for ``ddim``, and so are the arguments not named here; or ``NoiseSchedule.flow(shift)``.
        steps: Number of network evaluations S, 1 ≤ S < T; on a flow 1 ≤ S ≤ T.
        timesteps: As for ``ddim``; on a flow as for ``euler``, and so are ``sigmas`` and ``shift``.
        spacing: As for ``ddim``, over S + 1 points of which the cleanest is left out, as diffusers does; on a flow as
            for ``euler``. Not for flows are ``steps_offset``, ``prediction_type``, ``clip``, ``levels``,
            ``predict_x0`` and ``final_alpha_cumprod``.
        karras: As for ``euler``, and so are ``sigmas``, ``levels``, ``rho``, ``sigma_min`` and ``sigma_max``; but the
            ends are the schedule's, whatever ``spacing`` says, and timesteps whole: rounded, or with ``"exponential"``
            and ``"beta"``, as in diffusers, truncated.
        order: 1 to 3; the first steps are of lower order, for want of estimates. Of order 1 it is DDIM's step at these
            levels.
        solver_type: How the estimate's slope is integrated by steps of second order: ``"midpoint"``, or exactly, as
            diffusers' ``"heun"``.
        lower_order_final: Whether the order falls to 1 over the last steps where S < 15. Towards a clean sample the
            last step always is of first order.
        euler_at_final: Whether the last step is of first order with any S.
        predict_x0: Whether the clean sample is extrapolated; False: the noise, as in the original DPM-Solver.
        begin: How many of the first steps are left out; the first that is left is of first order.

    Returns:
        A table of S - ``begin`` rows, the noisiest timestep first; of one line up to order 2.

    Raises:
        ValueError: As for ``euler``, and if ``steps`` reaches T without ``timesteps``, ``order`` is not 1 to 3,
            ``solver_type`` is neither of the two, ``final_alpha_cumprod`` is 0, ``begin`` leaves no step, or an
            argument is given on a flow that is not for flows.
        TypeError: If ``steps``, ``order`` or ``begin`` is no whole number.

    Examples:
        >>> table = sf.samplers.dpmpp_2m(sf.NoiseSchedule.linear(), steps=20, karras=True)
        >>> len(table), table.passes, len(table.columns)
        (20, 20, 16)
    """
    require_between("order", order, 1, 3)
    options = LevelOptions(levels, karras, rho, sigma_min, sigma_max, sigmas, timesteps, shift=shift)
    kind: PredictionType | Literal["flow"] = prediction_type
    if schedule.is_flow:
        refuse_on_flows(
            steps_offset=(steps_offset, 0),
            prediction_type=(prediction_type, "epsilon"),
            clip=(clip, None),
            karras=(karras, False),
            levels=(levels, "schedule"),
            predict_x0=(predict_x0, True),
            final_alpha_cumprod=(final_alpha_cumprod, 1.0),
        )
        t, noise = flow_levels(schedule, steps, timesteps, options, spacing, of_signal=True)
        kind, ratios = "flow", noise / (1 - noise)
    else:
        refuse_without_flow(shift=(shift, None))
        t, ratios = solver_levels(
            schedule, steps, timesteps, spacing, steps_offset, prediction_type, final_alpha_cumprod, options
        )
    require_between("begin", begin, 0, len(t) - 1)
    falls = lower_order_final and len(t) < 15
    t, ratios = t[begin:], ratios[begin:]
    solver = ExponentialIntegrator(ratios, kind, clip, predict_x0=predict_x0)
    columns = multistep(solver, order, solver_type, falls=falls, euler_at_final=euler_at_final)
    if schedule.is_flow:
        signal_and_noise = 1 - noise[begin:-1], noise[begin:-1]
    else:
        signal_and_noise = preserving_levels(1 / (1 + ratios[:-1] ** 2))
    return build_table("dpmpp_2m", schedule, t, columns, signal_and_noise, guidance_scale, guidance_interval)


def multistep(
    solver: ExponentialIntegrator, order: int, solver_type: str, *, falls: bool = False, euler_at_final: bool = False
) -> Columns:
    """The columns of a run whose steps extrapolate the estimate with those of the last one or two steps.

    Args:
        solver: Its levels and estimates.
        order: As for ``dpmpp_2m``, and so are ``solver_type`` and ``euler_at_final``.
        falls: Whether the order falls to 1 over the last steps.

    Raises:
        ValueError: If ``solver_type`` is neither of the two.
    """
    if solver_type not in ("midpoint", "heun"):
        raise ValueError(f"solver_type must be 'midpoint' or 'heun', got {solver_type!r}")
    count = len(solver.estimates)
    orders = np.minimum(order, np.arange(count) + 1)
    if falls:
        orders = np.minimum(orders, np.arange(count, 0, -1))
    if euler_at_final:
        orders[-1] = 1
    updates = []
    for i, estimate in enumerate(solver.estimates):
        slope, bend = ZERO, ZERO
        if orders[i] > 1 and solver.bends(i, i + 1):
            slope, bend = _derivatives(solver, i, estimate, int(orders[i]))
        midpoint = orders[i] == 2 and solver_type == "midpoint"
        updates.append(Update(solver.step(i, i + 1, slope, bend, midpoint=midpoint), h=estimate, h2=H))
    return {**solver.line_1, **columns_of(updates)}


def _derivatives(solver: ExponentialIntegrator, i: int, estimate: Form, order: int) -> tuple[Form, Form]:
    """The estimate's first derivative at step i from the last one or two, and half of its second."""
    near = solver.place(i - 1, i, i + 1)
    to_near = 1 / near * (H - estimate)
    if order == 2:
        return to_near, ZERO
    far = solver.place(i - 2, i, i + 1)
    bend = 1 / (far - near) * (1 / far * (H2 - estimate) - to_near)
    return to_near - near * bend, bend
