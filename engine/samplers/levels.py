"""Which noise levels a run visits: those at spaced timesteps, those of a rule between two ends, or a caller's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import numpy as np

from stepfuse.samplers.beta_quantile import beta_quantile
from stepfuse.samplers.schedule import Float64Array, NoiseSchedule, as_vector, require_all

LevelKind = Literal["schedule", "karras", "exponential", "beta", "lu"]

KINDS = ("schedule", "karras", "exponential", "beta", "lu")

# Options of which one says all about the levels of a run, and what goes with some of them alone.
_CHOOSING = {"timesteps", "sigmas", "levels", "karras"}
_DEPENDING = {"rho", "sigma_min", "sigma_max"}

# Lists are published with few digits: that of Stable Diffusion begins at 14.615, where its schedule ends at 14.6146.
_ROUNDED = 1e-3


class LevelOptions:
    """The options of a sampler that choose its noise levels, checked: which of them go together is said here alone.

    Args:
        levels: ``"schedule"``, or the rule by which levels lie between two ends: ``"karras"``, ``"exponential"``,
            ``"beta"`` or ``"lu"``.
        karras: Another way to say ``levels="karras"``.
        rho: Exponent of Karras' levels, 0.1 to 1000; the larger, the nearer to equal steps of the logarithm.
        sigma_min, sigma_max: The ends, as noise over signal; None: those of the schedule.
        sigmas: A caller's own levels.
        timesteps: A caller's own timesteps, which leave nothing to choose.
        shift_terminal: On a flow, where the last of the shifted levels is to be.
        shift: On a flow, a shift in the place of the schedule's.

    Attributes:
        kind: ``levels``, with ``karras`` in it.
        shift: As given.

    Raises:
        ValueError: If an option is out of bounds, or given where it has no effect.
    """

    def __init__(
        self,
        levels: str = "schedule",
        karras: bool = False,
        rho: float = 7.0,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        sigmas: Sequence[float] | None = None,
        timesteps: Sequence[float] | None = None,
        shift_terminal: float | None = None,
        shift: float | None = None,
    ) -> None:
        if levels not in KINDS:
            raise ValueError(f"levels must be one of {', '.join(map(repr, KINDS))}, got {levels!r}")
        if karras and levels not in ("schedule", "karras"):
            raise ValueError(f"karras must be left out with levels {levels!r}, got {karras}")
        self.kind = "karras" if karras else levels
        if not 0.1 <= rho <= 1000:
            raise ValueError(f"rho must be between 0.1 and 1000, got {rho}")
        if rho != 7.0 and self.kind != "karras":
            raise ValueError(f"rho must be left out with levels {self.kind!r}, got {rho}")
        for name, bound in {"sigma_min": sigma_min, "sigma_max": sigma_max}.items():
            if bound is not None and self.kind == "schedule":
                raise ValueError(f"{name} must be left out with levels 'schedule', got {bound}")
        if sigmas is not None and timesteps is not None:
            raise ValueError("timesteps must be left out with sigmas, got both")
        for name, own in {"sigmas": sigmas, "timesteps": timesteps}.items():
            if own is not None and self.kind != "schedule":
                raise ValueError(f"{name} must be left out with levels {self.kind!r}, got {own!r}")
        for name, moved in {"shift_terminal": shift_terminal, "shift": shift}.items():
            if moved is not None and timesteps is not None:
                raise ValueError(f"{name} must be left out with timesteps, got {moved}")
        if shift_terminal is not None and not 0 < shift_terminal < 1:
            raise ValueError(f"shift_terminal must be above 0 and below 1, or None, got {shift_terminal}")
        if shift is not None and not 0 < shift < 1e6:
            raise ValueError(f"shift must be above 0 and below 1e6, or None, got {shift}")
        self.shift, self._shift_terminal = shift, shift_terminal
        self._sigmas, self._rho, self._ends = sigmas, rho, (sigma_min, sigma_max)

    @property
    def follow_spacing(self) -> bool:
        """Whether the levels are those at timesteps, spaced or given."""
        return self.kind == "schedule" and self._sigmas is None

    @property
    def follow_rule(self) -> bool:
        """Whether they lie between two ends by a rule."""
        return self.kind != "schedule"

    @property
    def end_clean(self) -> bool:
        """Whether the caller's own levels end with a 0."""
        return self._sigmas is not None and len(self._sigmas) > 1 and self._sigmas[-1] == 0

    def own(self, steps: int | None, low: float, high: float) -> Float64Array | None:
        """The caller's own levels, the last 0 left out; None where there are none.

        Args:
            steps: Their number, or None.
            low: The least of the schedule, above 0.
            high: Its greatest.

        Raises:
            ValueError: If ``sigmas`` are not falling, not within the schedule up to a last 0, or not ``steps``.
        """
        if self._sigmas is None:
            return None
        sigma = as_vector("sigmas", self._sigmas)
        sigma = sigma[:-1] if self.end_clean else sigma
        for index, one in enumerate(sigma):
            _require_within(f"sigmas[{index}]", one, low, high)
        require_all("sigmas", sigma, np.diff(sigma, prepend=np.inf) < 0, "below the one before it")
        if steps is not None and steps != len(sigma):
            raise ValueError(f"steps must be the number of sigmas above 0, {len(sigma)}, or left out, got {steps}")
        return sigma

    def shifted(self, sigma: Float64Array, schedule: NoiseSchedule) -> Float64Array:
        """Levels of a flow after its shift (Esser et al., 2024, Eq. 23), stretched to end at ``shift_terminal``."""
        shift = self.shift or schedule.shift or 1.0
        sigma = shift * sigma / (1 + (shift - 1) * sigma)
        if self._shift_terminal is None or sigma[-1] == 1:  # a single step, from pure noise, stays there
            return sigma
        return cast("Float64Array", 1 - (1 - sigma) * (1 - self._shift_terminal) / (1 - sigma[-1]))

    def between(self, ends: tuple[float, float], bounds: tuple[float, float], count: int) -> Float64Array:
        """The rule's levels from the higher end to the lower, shape (count,).

        Karras et al. (2022), Eq. 5; equal steps of the logarithm; quantiles of the beta distribution with both
        parameters 0.6, of Lee et al. (2024, "Beta sampling is all you need").

        Args:
            ends: The lower and the higher, above 0, where ``sigma_min`` and ``sigma_max`` are not given.
            bounds: The least and the greatest level of the schedule, which these must not leave.
            count: At least 1; a single level is the higher end.

        Raises:
            ValueError: If ``sigma_min`` and ``sigma_max`` do not lie within the schedule, or not in this order.
        """
        for name, given in zip(("sigma_min", "sigma_max"), self._ends, strict=True):
            if given is not None:
                _require_within(name, given, *bounds)
        low, high = (end if given is None else given for end, given in zip(ends, self._ends, strict=True))
        if self._ends != (None, None) and count > 1 and not low < high:
            raise ValueError(f"sigma_min must be below sigma_max, got {low:g} and {high:g}")
        ramp = np.linspace(0, 1, count)
        if self.kind == "karras":
            levels = high * (1 + ramp * ((low / high) ** (1 / self._rho) - 1)) ** self._rho
        elif self.kind == "beta":
            levels = low + beta_quantile(1 - ramp, 0.6, 0.6) * (high - low)
        else:
            levels = np.exp(np.log(high) + ramp * (np.log(low) - np.log(high)))
        return cast("Float64Array", levels)


def without_overridden(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """A model's default options less those of noise levels, where a caller's own options choose other ones."""
    chosen = _CHOOSING & {name for name, value in given.items() if value is not None}
    gone = _CHOOSING | _DEPENDING if chosen else set()
    if "timesteps" in chosen:
        gone |= {"shift", "shift_terminal"}
    return {name: value for name, value in defaults.items() if name not in gone}


def _require_within(name: str, sigma: float, low: float, high: float) -> None:
    if not low * (1 - _ROUNDED) <= sigma <= high * (1 + _ROUNDED):
        raise ValueError(f"{name} must lie within the schedule's noise levels, {low:.5g} to {high:.5g}, got {sigma:g}")
