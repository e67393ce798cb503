"""The exponential integrator that DPM-Solver and DPM-Solver++ step with, on forms."""

from __future__ import annotations

from math import expm1, inf, sqrt
from typing import Literal

import numpy as np

from stepfuse.samplers.coefficients import Columns, PredictionType, clean_sample, eps_from
from stepfuse.samplers.forms import ZERO, D, E, Form, X, Z
from stepfuse.samplers.log_snr import SAME_LEVEL
from stepfuse.samplers.schedule import Float64Array


class ExponentialIntegrator:
    """Steps between levels that are exact where the estimate is a polynomial in half log-SNR.

    With lambda the half log-SNR, x / noise changes by the integral over lambda of e^lambda times the clean estimate (Lu
    et al., 2022b, section 4), and x / signal by that of e^-lambda times the noise estimate, negative (Lu et al., 2022a,
    section 3.1). On the diffusion SDE a step of length h keeps the share e^(-eta h) of the noise in the state and draws
    the rest anew; the integral is that of e^((1 + eta) lambda) (SDE-DPM-Solver++ of Lu et al., 2022b).

    Attributes:
        estimates: The estimate at each step, as what the step reads.
        line_1: The columns of the implied clean sample.

    Args:
        sigmas: Noise over signal at each step and of the result, shape (S + 1,).
        prediction_type: As for ``ddim``, and so is ``clip``; or ``flow``, whose signal and noise add up to 1.
        clip: Bound of the clean estimate.
        predict_x0: Whether the estimate is the clean sample; False: the noise.
        eta: Share of the diffusion SDE's noise, 0 (the ODE) to 1; with the clean sample as estimate alone.
    """

    def __init__(
        self,
        sigmas: Float64Array,
        prediction_type: PredictionType | Literal["flow"],
        clip: float | None,
        *,
        predict_x0: bool = True,
        eta: float = 0.0,
    ) -> None:
        assert predict_x0 or (eta == 0 and prediction_type != "flow")
        signal = 1 / (1 + sigmas if prediction_type == "flow" else np.hypot(1, sigmas))
        noise = sigmas * signal
        with np.errstate(divide="ignore"):
            self._log_snr = -np.log(sigmas)  # half of it
        self._sigmas, self._signal, self._noise = sigmas, signal, noise
        self._predict_x0, self._eta = predict_x0, eta
        a = signal[:-1] ** 2
        self.estimates = self._clean = [D] * len(a)
        if prediction_type == "flow":
            self.line_1: Columns = {"p_x": 1.0, "p_e": -noise[:-1]}
            return
        self.line_1 = clean_sample(prediction_type, a, clip)
        if not predict_x0:
            in_eps = zip(*eps_from(prediction_type, a, from_clipped=clip is not None), strict=True)
            self.estimates = [x * X + d * D + e * E for x, d, e in in_eps]
            if clip is None:  # of what the network says, since x / signal would lose digits where there is hardly any
                on_x, on_e = (np.asarray(self.line_1[name], np.float64) for name in ("p_x", "p_e"))
                self._clean = [x * X + e * E for x, e in zip(on_x, on_e, strict=True)]

    def bends(self, begin: int, end: int) -> bool:
        """Whether a slope has any effect between two levels: they differ, and the second is not clean."""
        return bool(SAME_LEVEL < self._log_snr[end] - self._log_snr[begin] < inf)

    def place(self, level: int, begin: int, end: int) -> float:
        """Where a level lies on the way from one to another, in lengths of it: 0 at its beginning, 1 at its end."""
        return float((self._log_snr[level] - self._log_snr[begin]) / (self._log_snr[end] - self._log_snr[begin]))

    def step(self, begin: int, end: int, slope: Form = ZERO, bend: Form = ZERO, *, midpoint: bool = False) -> Form:
        """The state at a level, from the state and the estimate that the step at another has.

        Args:
            begin: The step's level.
            end: The level to step to.
            slope: The estimate's first derivative at ``begin``, by the share of the way.
            bend: Its second.
            midpoint: Whether the slope has half the weight of the estimate, the limit of short steps, instead of its
                exact one.
        """
        estimate, to_signal, to_noise = self.estimates[begin], float(self._signal[end]), float(self._noise[end])
        if self._predict_x0:
            # e^(-eta h); two levels that are one may be rounded the wrong way round.
            shrunk: float = min(float(self._sigmas[end] / self._sigmas[begin]), 1.0) ** self._eta
            rest = to_noise / float(self._noise[begin]) * shrunk
            after = rest * X + (to_signal - rest * float(self._signal[begin])) * estimate
            after += to_noise * sqrt(1 - shrunk**2) * Z
        else:
            after = to_signal * self._clean[begin] + to_noise * estimate
        if not self.bends(begin, end):
            return after
        length = float(self._log_snr[end] - self._log_snr[begin])
        h, scale = (-(1 + self._eta) * length, to_signal) if self._predict_x0 else (length, to_noise)
        grown = expm1(h)
        of_slope = grown / 2 if midpoint else grown / h - 1
        of_bend = (grown - h) / h**2 - 0.5
        return after - scale * (of_slope * slope + of_bend * bend)
