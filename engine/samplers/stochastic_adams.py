"""SA-Solver: stochastic Adams methods, a predictor and a corrector that costs no pass of its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stepfuse.samplers.coefficients import (
    Columns,
    PredictionType,
    build_table,
    clean_sample,
    eps_from,
    preserving_levels,
    recorded,
    require_between,
)
from stepfuse.samplers.forms import H2, H3, ZERO, D, E, Form, H, Update, X, Z, columns_of
from stepfuse.samplers.levels import LevelKind, LevelOptions
from stepfuse.samplers.log_snr import solver_levels
from stepfuse.samplers.schedule import Float64Array, NoiseSchedule, Spacing
from stepfuse.samplers.table import StepTable


@recorded
def sa_solver(
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
    predictor_order: int = 2,
    corrector_order: int = 2,
    lower_order_final: bool = True,
    predict_x0: bool = True,
    tau: float = 1.0,
    tau_interval: tuple[float, float] = (200.0, 800.0),
    final_alpha_cumprod: float = 1.0,
    begin: int = 0,
    guidance_scale: float = 1.0,
    guidance_interval: tuple[float, float] = (0.0, 1.0),
) -> StepTable:
    """SA-Solver of Xue et al. (2023): Adams-Bashforth predicts the next state, Adams-Moulton corrects it there.

    Both add the same noise. The corrected state is affine in the estimate that is made at the predicted one; what is
    known of it before, the noise among it, is kept in ``h``, and the last two estimates in ``h2`` and ``h3``.

    Args:
        schedule: As for ``dpmpp_2m``, and so are the arguments not named here.
        steps: Number of network evaluations S, 1 ≤ S < T.
        predictor_order: Estimates that the predictor's polynomial goes through, 1 to 3; the first steps have fewer.
        corrector_order: The same for the corrector, 1 to 4, with the one that is made at the predicted state.
        lower_order_final: Whether the orders fall over the last steps.
        predict_x0: Whether the clean sample is extrapolated; False: the noise.
        tau: Share of noise, 0 (the ODE) to 1 (the diffusion SDE); other shares are other SDEs of the same marginals.
        tau_interval: Timesteps between which ``tau`` holds, both ends included; outside it is 0.
        final_alpha_cumprod: As for ``ddim``; diffusers' class always ends at the schedule's first. A step to a clean
            sample is of first order and adds no noise.
        begin: How many of the first steps are left out; the first that is left is of first order.

    Returns:
        A table of S - ``begin`` rows, the noisiest timestep first.

    Raises:
        ValueError: As for ``dpmpp_2m``, and if ``predictor_order``, ``corrector_order`` or ``tau`` is out of bounds,
            ``tau_interval`` does not rise, or ``begin`` leaves no step.
        TypeError: If ``steps``, an order or ``begin`` is no whole number.

    Examples:
        >>> table = sf.samplers.sa_solver(sf.NoiseSchedule.linear(), steps=20)
        >>> len(table), table.passes, len(table.columns)
        (20, 20, 32)
    """
    require_between("predictor_order", predictor_order, 1, 3)
    require_between("corrector_order", corrector_order, 1, 4)
    require_between("tau", tau, 0.0, 1.0)
    start, stop = tau_interval
    if not start <= stop:
        raise ValueError(f"tau_interval must be (start, stop) with start <= stop, got {tau_interval}")
    options = LevelOptions(levels, karras, rho, sigma_min, sigma_max, sigmas, timesteps)
    t, ratios = solver_levels(
        schedule, steps, timesteps, spacing, steps_offset, prediction_type, final_alpha_cumprod, options
    )
    require_between("begin", begin, 0, len(t) - 1)
    t, ratios = t[begin:], ratios[begin:]
    signal = 1 / np.hypot(1, ratios)
    a = signal[:-1] ** 2
    estimates = [D] * len(t)
    if not predict_x0:
        in_eps = zip(*eps_from(prediction_type, a, from_clipped=clip is not None), strict=True)
        estimates = [x * X + d * D + e * E for x, d, e in in_eps]
    solver = _Solver(ratios, np.where((t >= start) & (t <= stop), tau, 0.0), predict_x0=predict_x0)
    updates, x = [], X
    for i, estimate in enumerate(estimates):
        left = len(t) - i
        latest = (estimate, H2, H3)
        order = min(predictor_order, i + 1, left if lower_order_final else predictor_order)
        kept, known = solver.kept(i, x), ZERO
        predicted = kept + _sum(solver.weights(i, range(i, i - order, -1)), latest)
        if left > 1:
            order = min(corrector_order, i + 2, left + 1 if lower_order_final else corrector_order)
            on_next, *weights = solver.weights(i, range(i + 1, i + 1 - order, -1))
            known = kept + _sum(weights, latest)
            x = H + on_next * estimates[i + 1]
        updates.append(Update(predicted, h=known, h2=estimate, h3=H2))
    columns: Columns = {**clean_sample(prediction_type, a, clip), **columns_of(updates)}
    return build_table("sa_solver", schedule, t, columns, preserving_levels(a), guidance_scale, guidance_interval)


class _Solver:
    """A step as the exact solution of the SDE for a polynomial in half log-SNR in the place of the estimate.

    Args:
        sigmas: Noise over signal at each step and of the result, shape (S + 1,).
        tau: Of each step, shape (S,); towards a clean sample it is taken as 0.
        predict_x0: As for ``sa_solver``.
    """

    def __init__(self, sigmas: Float64Array, tau: Float64Array, *, predict_x0: bool) -> None:
        with np.errstate(divide="ignore"):
            self._log_snr = -np.log(sigmas)  # half of it
        self._ratio = sigmas[1:] / sigmas[:-1]  # e^-h
        self._signal = 1 / np.hypot(1, sigmas)
        self._noise = sigmas * self._signal
        self._squared_tau = np.where(sigmas[1:] > 0, tau**2, 0.0)
        self._predict_x0 = predict_x0

    def kept(self, i: int, x: Form) -> Form:
        """What of the result is of no estimate: a share of the state, and new noise."""
        signal, noise = self._signal[i : i + 2], self._noise[i : i + 2]
        ratio, square = self._ratio[i], self._squared_tau[i]
        if self._predict_x0:
            drawn = noise[1] ** 2 * (1 - ratio ** (2 * square))
            kept = ratio**square * noise[1] / noise[0]
        else:
            drawn = square * ((signal[1] / signal[0] * noise[0]) ** 2 - noise[1] ** 2)
            kept = signal[1] / signal[0]
        return float(kept) * x + float(np.sqrt(max(drawn, 0.0))) * Z

    def weights(self, i: int, at: Sequence[int]) -> list[float]:
        """Weights in the result of the estimates at these levels, by their indices; towards a clean sample of one."""
        rate = 1 + self._squared_tau[i]
        length = self._log_snr[i + 1] - self._log_snr[i]
        if self._predict_x0:
            scale, growth, constant = (
                self._signal[i + 1] * rate,
                rate,
                self._signal[i + 1] * (1 - self._ratio[i] ** rate),
            )
        else:
            scale, growth = -self._noise[i + 1] * rate, -1.0
            constant = rate * (self._noise[i + 1] - self._signal[i + 1] / self._signal[i] * self._noise[i])
        if length == np.inf or len(at) == 1:
            return [float(constant)]
        if self._predict_x0 and len(at) == 2:
            # With two estimates the authors take the slope's integral without its exponential.
            slope = float(scale * length**2 / 2 / (self._log_snr[at[0]] - self._log_snr[at[1]]))
            return [slope + constant * (at[0] == i), constant * (at[1] == i) - slope]
        back = self._log_snr[list(at)] - self._log_snr[i + 1]
        moments = [(1 - np.exp(-growth * length)) / growth]  # integrals of e^(growth v) v^k from -length to 0
        for k in range(1, len(at)):
            moments.append((-((-length) ** k) * np.exp(-growth * length) - k * moments[-1]) / growth)
        solved = np.linalg.solve(back ** np.arange(len(at))[:, None], np.array(moments))
        return [float(weight) for weight in scale * solved]


def _sum(weights: Sequence[float], forms: Sequence[Form]) -> Form:
    total = ZERO
    for weight, form in zip(weights, forms, strict=False):
        total += weight * form
    return total
