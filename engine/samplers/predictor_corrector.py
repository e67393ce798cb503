"""UniPC: a predictor, and a corrector that costs no pass of its own."""

from __future__ import annotations

from collections.abc import Sequence
from math import expm1, factorial, inf
from typing import Literal

import numpy as np

from stepfuse.arguments import whole_number
from stepfuse.samplers.coefficients import (
    Columns,
    PredictionType,
    build_table,
    clean_sample,
    eps_from,
    recorded,
    refuse_on_flows,
    refuse_without_flow,
    require_between,
)
from stepfuse.samplers.forms import H2, H3, ZERO, D, E, Form, H, Update, X, columns_of
from stepfuse.samplers.levels import LevelKind, LevelOptions
from stepfuse.samplers.log_snr import SAME_LEVEL, flow_levels, solver_levels
from stepfuse.samplers.schedule import Float64Array, NoiseSchedule, Spacing
from stepfuse.samplers.table import StepTable


@recorded
def unipc(
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
    solver_type: Literal["bh1", "bh2"] = "bh2",
    lower_order_final: bool = True,
    predict_x0: bool = True,
    disable_corrector: Sequence[int] = (),
    final_alpha_cumprod: float = 1.0,
    shift: float | None = None,
    shift_terminal: float | None = None,
    begin: int = 0,
    guidance_scale: float = 1.0,
    guidance_interval: tuple[float, float] = (0.0, 1.0),
) -> StepTable:
    """UniPC of Zhao et al. (2023): UniP predicts the next state, and UniC corrects it with the pass taken there.

    The corrected state is affine in that pass. What is known of it before the pass is kept in ``h``, and the last two
    estimates in ``h2`` and ``h3``. The corrector is of the predictor's order.

    Args:
        schedule: As for ``dpmpp_2m``, and so are the arguments not named here; or ``NoiseSchedule.flow(shift)``.
        steps: Number of network evaluations S, 1 ≤ S < T; on a flow 1 ≤ S ≤ T.
        timesteps: As for ``dpmpp_2m``; on a flow as for ``euler``, and so are ``sigmas``, ``shift`` and
            ``shift_terminal``.
        spacing: As for ``dpmpp_2m``; on a flow as for ``euler``. Not for flows are ``steps_offset``,
            ``prediction_type``, ``clip``, ``levels``, ``predict_x0`` and ``final_alpha_cumprod``.
        order: Of the predictor, 1 to 3; the first steps are of lower order, for want of estimates.
        solver_type: B(h) of the paper: ``"bh1"`` is h, ``"bh2"`` is e^h - 1.
        lower_order_final: Whether the order falls to 1 over the last steps. Towards a clean sample the last step always
            is of first order, with either ``solver_type``: its other terms have no limit there.
        predict_x0: Whether the clean sample is extrapolated; False: the noise.
        disable_corrector: Steps whose result is not corrected, counted from 0. The last step's never is, nor does a
            number beyond it change anything, so that a list serves any number of steps.
        begin: How many of the first steps are left out; the first that is left is of first order.

    Returns:
        A table of S - ``begin`` rows, the noisiest timestep first; of one line where one register is enough.

    Raises:
        ValueError: As for ``dpmpp_2m``, and if ``order`` is not 1 to 3, ``solver_type`` neither of the two,
            ``begin`` leaves no step, an entry of ``disable_corrector`` is negative, or an argument is given on a flow
            that is not for flows.
        TypeError: If ``steps``, ``order``, ``begin`` or an entry of ``disable_corrector`` is no whole number, or
            ``disable_corrector`` is no list.

    Examples:
        >>> table = sf.samplers.unipc(sf.NoiseSchedule.linear(), steps=10, karras=True)
        >>> len(table), table.passes, len(table.columns)
        (10, 10, 32)
    """
    require_between("order", order, 1, 3)
    if solver_type not in ("bh1", "bh2"):
        raise ValueError(f"solver_type must be 'bh1' or 'bh2', got {solver_type!r}")
    if not isinstance(disable_corrector, list | tuple):
        raise TypeError(f"disable_corrector must be a list of whole numbers, got {disable_corrector!r}")
    for one in disable_corrector:
        if whole_number("disable_corrector", one) < 0:
            raise ValueError(f"disable_corrector must hold steps, at least 0, got {one}")
    options = LevelOptions(levels, karras, rho, sigma_min, sigma_max, sigmas, timesteps, shift_terminal, shift)
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
        t, noise = flow_levels(schedule, steps, timesteps, options, spacing)
        signal = 1 - noise
    else:
        refuse_without_flow(shift=(shift, None), shift_terminal=(shift_terminal, None))
        t, sigma = solver_levels(
            schedule, steps, timesteps, spacing, steps_offset, prediction_type, final_alpha_cumprod, options
        )
        signal = 1 / np.hypot(1, sigma)
        noise = sigma * signal
    require_between("begin", begin, 0, len(t) - 1)
    t, signal, noise = t[begin:], signal[begin:], noise[begin:]

    line_1: Columns = {"p_x": 1.0, "p_e": -noise[:-1]}
    estimates = [D] * len(t)
    if not schedule.is_flow:
        a = signal[:-1] ** 2
        line_1 = clean_sample(prediction_type, a, clip)
        if not predict_x0:
            in_eps = zip(*eps_from(prediction_type, a, from_clipped=clip is not None), strict=True)
            estimates = [x * X + d * D + e * E for x, d, e in in_eps]
    solver = _Solver(signal, noise, solver_type, predict_x0=predict_x0)
    updates, x = [], X
    for i, estimate in enumerate(estimates):
        latest = [estimate, H2, H3]
        now = min(order, i + 1, len(t) - i if lower_order_final else order)
        predicted, known, weight = solver.predict(i, x, latest, now), ZERO, 0.0
        corrected = i + 1 < len(t) and begin + i not in disable_corrector
        if corrected:
            known, weight = solver.correct(i, x, latest, now)
        updates.append(Update(predicted, known, estimate, H2))
        x = H + weight * estimates[i + 1] if corrected else X
    columns: Columns = {**line_1, **columns_of(updates)}
    return build_table("unipc", schedule, t, columns, (signal[:-1], noise[:-1]), guidance_scale, guidance_interval)


class _Solver:
    """UniP and UniC of Zhao et al. (2023), in their B(h) form, between neighbouring levels.

    Args:
        signal: Of the state at each step and of the result, shape (S + 1,).
        noise: The same.
        solver_type: As for ``unipc``.
        predict_x0: As for ``unipc``.
    """

    def __init__(self, signal: Float64Array, noise: Float64Array, solver_type: str, *, predict_x0: bool) -> None:
        with np.errstate(divide="ignore"):
            self._log_snr = np.log(signal) - np.log(noise)  # half of it
        self._of_estimate, self._of_rest = (signal, noise) if predict_x0 else (noise, signal)
        self._bh1, self._predict_x0 = solver_type == "bh1", predict_x0

    def predict(self, i: int, x: Form, estimates: Sequence[Form], order: int) -> Form:
        """The state after step i; estimates are those of step i and of the steps before, the latest first."""
        first = self._first_order(i, x, estimates[0])
        if order == 1 or not SAME_LEVEL < self._length(i) < inf:
            return first
        system, values, ratios = self._system(i, order)
        weights = [0.5] if order == 2 else np.linalg.solve(system[:-1, :-1], values[:-1]).tolist()
        return first + self._differences(i, weights, ratios, estimates)

    def correct(self, i: int, x: Form, estimates: Sequence[Form], order: int) -> tuple[Form, float]:
        """The state after step i as what is known of it, and the weight of the estimate that is made there."""
        system, values, ratios = self._system(i, order)
        weights = [0.5] if order == 1 else np.linalg.solve(system, values).tolist()
        known = self._first_order(i, x, estimates[0]) + self._differences(i, weights[:-1], ratios, estimates)
        latest = -self._scale(i) * weights[-1]
        return known - latest * estimates[0], latest

    def _first_order(self, i: int, x: Form, estimate: Form) -> Form:
        """The exact solution for a constant estimate."""
        rest = float(self._of_rest[i + 1] / self._of_rest[i])
        return rest * x + float(self._of_estimate[i + 1] - rest * self._of_estimate[i]) * estimate

    def _differences(self, i: int, weights: Sequence[float], ratios: Float64Array, estimates: Sequence[Form]) -> Form:
        """What the differences to earlier estimates add."""
        added = ZERO
        for weight, ratio, earlier in zip(weights, ratios, estimates[1:], strict=False):
            added += -self._scale(i) * weight / float(ratio) * (earlier - estimates[0])
        return added

    def _length(self, i: int) -> float:
        return float(self._log_snr[i + 1] - self._log_snr[i])

    def _signed_length(self, i: int) -> float:
        return -self._length(i) if self._predict_x0 else self._length(i)

    def _b(self, i: int) -> float:
        return self._signed_length(i) if self._bh1 else expm1(self._signed_length(i))

    def _scale(self, i: int) -> float:
        return float(self._of_estimate[i + 1]) * self._b(i)

    def _system(self, i: int, order: int) -> tuple[Float64Array, Float64Array, Float64Array]:
        """Matrix and right side for the weights, and the distances of earlier steps in lengths of this one."""
        h = self._signed_length(i)
        earlier = [(self._log_snr[i - k] - self._log_snr[i]) / self._length(i) for k in range(1, order)]
        ratios = np.append(earlier, 1.0)
        phi, values = expm1(h) / h - 1, []
        for k in range(1, order + 1):
            values.append(phi * factorial(k) / self._b(i))
            phi = phi / h - 1 / factorial(k + 1)
        return ratios ** np.arange(order)[:, None], np.array(values), ratios
