"""Noise schedules: how much signal is left at each training timestep, in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from stepfuse.arguments import number, plain, whole_number
from stepfuse.display import NAME, did_you_mean, printable

Float64Array = npt.NDArray[np.float64]
_LONGEST = 1_000_000  # a manifest may say anything
Spacing = Literal["leading", "trailing", "linspace"]


def _read_only(values: npt.ArrayLike) -> Float64Array:
    array = np.array(values, dtype=np.float64)
    array.flags.writeable = False
    return array


@dataclass(frozen=True)
class EdmLevels:
    """Noise levels of an EDM schedule, as ``NoiseSchedule.edm`` takes them."""

    sigma_min: float
    sigma_max: float
    sigma_data: float
    timestep_scale: float


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """The noise levels a network was trained with.

    Made by a class method. A variance-preserving schedule has ``alphas_cumprod``, the share of signal left at each
    training timestep; a flow schedule has a ``shift`` instead, and its states are ``(1 - sigma) x0 + sigma z``; an EDM
    schedule has a range of noise levels, ``edm_levels``, and its states are ``x0 + sigma z``.

    Attributes:
        num_train_timesteps: T, the length of the training schedule.
        shift: Flow schedules: resolution shift of Esser et al. (2024), Eq. 23. None for variance-preserving ones.
        edm_levels: Noise levels and scale of the data of an EDM schedule; None for others.
        config: The arguments that make this schedule again, as a manifest keeps them.

    Examples:
        >>> schedule = sf.NoiseSchedule.linear()
        >>> schedule.alphas_cumprod.shape, schedule.num_train_timesteps
        ((1000,), 1000)
        >>> schedule.min_timestep, schedule.max_timestep
        (0.0, 999.0)
        >>> schedule.is_flow, schedule.is_edm
        (False, False)
        >>> signal, noise = schedule.levels([0, 999])
        >>> sf.NoiseSchedule.from_config(schedule.config)
        <NoiseSchedule linear, T = 1000>
    """

    num_train_timesteps: int
    shift: float | None = None
    edm_levels: EdmLevels | None = None
    config: dict[str, Any] = field(default_factory=dict)
    _alphas_cumprod: Float64Array | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        shift = "" if self.shift is None else f", shift {self.shift:g}"
        kind = printable(self.config.get("type", "custom"), NAME)
        return f"<NoiseSchedule {kind}, T = {self.num_train_timesteps}{shift}>"

    @property
    def is_flow(self) -> bool:
        """Whether states lie on a straight line between sample and noise instead of being variance-preserving."""
        return self.shift is not None

    @property
    def is_edm(self) -> bool:
        """Whether there are no training timesteps but a range of noise levels, with states ``x0 + sigma z``."""
        return self.edm_levels is not None

    @property
    def max_timestep(self) -> float:
        """The noisiest timestep: T - 1; T on a flow schedule, whose timesteps are T σ; an EDM schedule's own."""
        if self.edm_levels is not None:
            return self._edm_timestep(self.edm_levels.sigma_max)
        return float(self.num_train_timesteps if self.is_flow else self.num_train_timesteps - 1)

    @property
    def min_timestep(self) -> float:
        """The cleanest timestep: 0, or on an EDM schedule that of its least noise, which may be negative."""
        return 0.0 if self.edm_levels is None else self._edm_timestep(self.edm_levels.sigma_min)

    def _edm_timestep(self, sigma: float) -> float:
        assert self.edm_levels is not None
        return float(np.float32(self.edm_levels.timestep_scale * np.log(sigma)))  # as a table holds it

    @property
    def alphas_cumprod(self) -> Float64Array:
        """Share of signal left, ᾱ_t, shape (T,), float64, read-only, not increasing.

        Raises:
            ValueError: On a flow or an EDM schedule, which have none.
        """
        if self.edm_levels is not None:
            raise ValueError("an EDM schedule has no alphas_cumprod: use a sampler for EDM models, such as 'edm_euler'")
        if self._alphas_cumprod is None:
            raise ValueError("a flow schedule has no alphas_cumprod: use a sampler for flow models, such as 'euler'")
        return self._alphas_cumprod

    def levels(self, timesteps: npt.ArrayLike) -> tuple[Float64Array, Float64Array]:
        """How the states at these timesteps are mixed: ``signal * x0 + noise * z``.

        Args:
            timesteps: Any shape, ``min_timestep`` to ``max_timestep``. Between two whole ones of a variance-preserving
                schedule noise over signal is interpolated.

        Returns:
            Signal and noise, each of the timesteps' shape: √ᾱ and √(1 − ᾱ), or 1 − σ and σ on a flow schedule, or 1
            and σ on an EDM schedule.

        Examples:
            >>> signal, noise = sf.NoiseSchedule.flow().levels([0, 250, 1000])
            >>> signal, noise
            (array([1.  , 0.75, 0.  ]), array([0.  , 0.25, 1.  ]))
        """
        if self.edm_levels is not None:
            sigma = np.exp(np.asarray(timesteps, dtype=np.float64) / self.edm_levels.timestep_scale)
            return np.ones_like(sigma), sigma
        if self.is_flow:
            sigma = np.asarray(timesteps, dtype=np.float64) / self.num_train_timesteps
            return 1 - sigma, sigma
        alphas = self.alphas_cumprod_at(timesteps)
        return np.sqrt(alphas), np.sqrt(1 - alphas)

    def alphas_cumprod_at(self, timesteps: npt.ArrayLike) -> Float64Array:
        """Share of signal left at these timesteps, of any shape, 0 to T - 1; between two whole ones as in ``levels``.

        Raises:
            ValueError: On a flow or an EDM schedule, which have none.

        Examples:
            >>> schedule = sf.NoiseSchedule.linear()
            >>> schedule.alphas_cumprod_at([0, 0.5, 999]).round(4)
            array([0.9999, 0.9998, 0.    ])
        """
        t = np.asarray(timesteps, dtype=np.float64)
        below = np.floor(t).astype(int)
        alphas: Float64Array = self.alphas_cumprod[below]
        share = t - below
        if not share.any():
            return alphas
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.sqrt(1 / self.alphas_cumprod - 1)
            between = (1 - share) * ratio[below] + share * ratio[np.minimum(below + 1, len(ratio) - 1)]
        alphas = np.where(share > 0, 1 / (1 + between**2), alphas)
        return alphas

    @classmethod
    def linear(cls, beta_start: float = 1e-4, beta_end: float = 0.02, num_train_timesteps: int = 1000) -> NoiseSchedule:
        """Betas from ``beta_start`` to ``beta_end`` in equal steps (Ho et al., 2020, section 4).

        Examples:
            >>> float(sf.NoiseSchedule.linear().alphas_cumprod[-1].round(6))
            4e-05
        """
        betas = np.linspace(beta_start, beta_end, _length(num_train_timesteps))
        return cls._named(betas, type="linear", beta_start=beta_start, beta_end=beta_end)

    @classmethod
    def scaled_linear(
        cls, beta_start: float = 0.00085, beta_end: float = 0.012, num_train_timesteps: int = 1000
    ) -> NoiseSchedule:
        """Square roots of the betas in equal steps: latent diffusion (Rombach et al., 2022) and Stable Diffusion.

        Examples:
            >>> float(sf.NoiseSchedule.scaled_linear().alphas_cumprod[-1].round(6))
            0.00466
        """
        betas = np.linspace(beta_start**0.5, beta_end**0.5, _length(num_train_timesteps)) ** 2
        return cls._named(betas, type="scaled_linear", beta_start=beta_start, beta_end=beta_end)

    @classmethod
    def squaredcos(cls, num_train_timesteps: int = 1000, max_beta: float = 0.999) -> NoiseSchedule:
        """ᾱ follows a squared cosine (Nichol & Dhariwal, 2021, Eq. 17), each beta at most ``max_beta``.

        Examples:
            >>> sf.NoiseSchedule.squaredcos()
            <NoiseSchedule squaredcos, T = 1000>
        """
        time = np.linspace(0.0, 1.0, _length(num_train_timesteps) + 1)
        alpha_bar = np.cos((time + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = np.minimum(1.0 - alpha_bar[1:] / alpha_bar[:-1], max_beta)
        return cls._named(betas, type="squaredcos", max_beta=max_beta)

    @classmethod
    def from_betas(cls, betas: npt.ArrayLike) -> NoiseSchedule:
        """From per-step noise variances β_t, shape (T,), each in [0, 1].

        Examples:
            >>> sf.NoiseSchedule.from_betas([0.1, 0.2, 0.4]).alphas_cumprod.round(3)
            array([0.9  , 0.72 , 0.432])
        """
        values = as_vector("betas", betas)
        require_all("betas", values, (values >= 0) & (values <= 1), "between 0 and 1")
        return cls.from_alphas_cumprod(np.cumprod(1.0 - values))

    @classmethod
    def from_alphas_cumprod(cls, alphas_cumprod: npt.ArrayLike) -> NoiseSchedule:
        """From ᾱ_t, shape (T,), each in [0, 1] and none above the one before it.

        Examples:
            >>> sf.NoiseSchedule.from_alphas_cumprod([0.9, 0.5, 0.1]).num_train_timesteps
            3
        """
        values = as_vector("alphas_cumprod", alphas_cumprod)
        require_all("alphas_cumprod", values, (values >= 0) & (values <= 1), "between 0 and 1")
        require_all("alphas_cumprod", values, np.diff(values, prepend=values[0]) <= 0, "at most the value before it")
        config = {"type": "alphas_cumprod", "alphas_cumprod": values.tolist()}
        return cls(len(values), config=config, _alphas_cumprod=_read_only(values))

    @classmethod
    def flow(cls, shift: float = 1.0, num_train_timesteps: int = 1000) -> NoiseSchedule:
        """Rectified flow (Liu et al., 2023; Esser et al., 2024): the network predicts ``z - x0``, timesteps are T σ.

        Examples:
            >>> schedule = sf.NoiseSchedule.flow(shift=3.0)
            >>> schedule.is_flow, schedule.shift
            (True, 3.0)
        """
        shift = number("shift", shift)
        if not (np.isfinite(shift) and shift > 0):
            raise ValueError(f"shift must be positive and finite, got {shift}")
        length, shift = _length(num_train_timesteps), float(shift)
        return cls(length, shift=shift, config={"type": "flow", "shift": shift, "num_train_timesteps": length})

    @classmethod
    def edm(
        cls,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        sigma_data: float = 0.5,
        timestep_scale: float = 0.25,
        num_train_timesteps: int = 1000,
    ) -> NoiseSchedule:
        """Noise levels without steps, and a network between scalings, of Karras et al. (2022), Table 1.

        The network is given ``x / sqrt(sigma^2 + sigma_data^2)`` and the timestep ``timestep_scale log(sigma)``. With
        its output F the clean sample is ``c_skip x + c_out F`` where ``prediction_type`` is ``epsilon``, and
        ``c_skip x - c_out F`` where it is ``v_prediction``, as diffusers has it.

        Args:
            sigma_min: The least noise, above 0.
            sigma_max: The most, above ``sigma_min``.
            sigma_data: Standard deviation of the data.
            timestep_scale: 1/4 for EDM, 250 for consistency models (Song et al., 2023).
            num_train_timesteps: The most steps of a run.

        Raises:
            ValueError: If a bound is broken.

        Examples:
            >>> schedule = sf.NoiseSchedule.edm()
            >>> schedule.is_edm, schedule.edm_levels.sigma_max
            (True, 80.0)
        """
        given = {"sigma_min": sigma_min, "sigma_max": sigma_max, "sigma_data": sigma_data}
        given["timestep_scale"] = timestep_scale
        for name, value in given.items():
            if not (np.isfinite(number(name, value)) and value > 0):
                raise ValueError(f"{name} must be positive and finite, got {value}")
        if sigma_min >= sigma_max:
            raise ValueError(f"sigma_min must be below sigma_max, {sigma_max}, got {sigma_min}")
        given = {name: float(value) for name, value in given.items()}
        length = _length(num_train_timesteps)
        config = {"type": "edm", **given, "num_train_timesteps": length}
        return cls(length, edm_levels=EdmLevels(**given), config=config)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> NoiseSchedule:
        """Makes a schedule from its ``config``.

        Raises:
            ValueError: If the type is unknown, or an argument is missing, unknown or out of bounds.

        Examples:
            >>> sf.NoiseSchedule.from_config({"type": "linear", "num_train_timesteps": 500})
            <NoiseSchedule linear, T = 500>
        """
        arguments = dict(config)
        kind = arguments.pop("type", None)
        zero_snr = arguments.pop("zero_terminal_snr", False)
        if not isinstance(zero_snr, bool):
            raise ValueError(f"zero_terminal_snr must be true or false, got {zero_snr!r}")
        makers: dict[Any, Callable[..., NoiseSchedule]] = {
            "linear": cls.linear,
            "scaled_linear": cls.scaled_linear,
            "squaredcos": cls.squaredcos,
            "alphas_cumprod": cls.from_alphas_cumprod,
            "flow": cls.flow,
            "edm": cls.edm,
        }
        if kind not in makers:
            raise ValueError(f"schedule type must be one of {', '.join(makers)}, got {kind!r}")
        try:
            schedule = makers[kind](**arguments)
        except TypeError as error:
            raise ValueError(f"schedule {kind!r}: {error}") from error
        return schedule.rescale_zero_terminal_snr() if zero_snr else schedule

    @classmethod
    def _named(cls, betas: Float64Array, **config: Any) -> NoiseSchedule:
        schedule = cls.from_betas(betas)
        config["num_train_timesteps"] = len(betas)
        return cls(len(betas), config=plain(config), _alphas_cumprod=schedule.alphas_cumprod)

    def rescale_zero_terminal_snr(self) -> NoiseSchedule:
        """The same schedule stretched to end in pure noise, ᾱ_T = 0 (Lin et al., 2023, Algorithm 1).

        Examples:
            >>> schedule = sf.NoiseSchedule.scaled_linear().rescale_zero_terminal_snr()
            >>> float(schedule.alphas_cumprod[-1].round(6))
            0.0
        """
        root = np.sqrt(self.alphas_cumprod)
        if root[0] == root[-1]:
            raise ValueError(f"alphas_cumprod must fall to be stretched to 0, got {root[0] ** 2:g} throughout")
        root = (root - root[-1]) * root[0] / (root[0] - root[-1])
        config = {**self.config, "zero_terminal_snr": True}
        return NoiseSchedule(self.num_train_timesteps, config=config, _alphas_cumprod=_read_only(root**2))


def spaced_timesteps(num_train_timesteps: int, steps: int, spacing: Spacing, steps_offset: int = 0) -> Float64Array:
    """``steps`` training timesteps, the noisiest first, whole numbers (Lin et al., 2023, Table 2).

    Args:
        num_train_timesteps: T.
        steps: S, between 1 and T.
        spacing: ``leading`` counts up from 0 by T // S, so that it ends far below T - 1 where S is large and does not
            divide T; ``trailing`` counts down from T - 1 by T / S, ``linspace`` takes in both ends.
        steps_offset: Added to ``leading`` timesteps; where an offset of up to one stride would lead beyond T - 1, as
            far as it goes (with T steps, not at all).

    Raises:
        ValueError: If ``spacing`` is unknown.
    """
    total = num_train_timesteps
    if spacing == "leading":
        stride = total // steps
        t = np.arange(steps, dtype=np.float64)[::-1] * stride
        fits = total - 1 - t[0]
        return t + (min(steps_offset, fits) if steps_offset <= stride else steps_offset)
    if spacing == "trailing":
        return np.round(np.arange(total, 0, -total / steps)[:steps]) - 1
    if spacing == "linspace":
        return np.linspace(0, total - 1, steps).round()[::-1].copy()
    hint = did_you_mean(str(spacing), ("leading", "trailing", "linspace"))
    raise ValueError(f"spacing must be 'leading', 'trailing' or 'linspace', got {spacing!r}{hint}")


def explicit_timesteps(num_train_timesteps: int, timesteps: Sequence[float] | npt.ArrayLike) -> Float64Array:
    """A caller's own timesteps, checked: within the schedule and strictly decreasing."""
    values = as_vector("timesteps", timesteps)
    inside = (values >= 0) & (values <= num_train_timesteps - 1)
    require_all("timesteps", values, inside, f"between 0 and {num_train_timesteps - 1}")
    require_all("timesteps", values, np.diff(values, prepend=np.inf) < 0, "below the one before it")
    return values


def _length(num_train_timesteps: int) -> int:
    length = whole_number("num_train_timesteps", num_train_timesteps)
    if not 1 <= length <= _LONGEST:
        raise ValueError(f"num_train_timesteps must be between 1 and {_LONGEST}, got {length}")
    return length


def as_vector(name: str, values: npt.ArrayLike) -> Float64Array:
    """A list of numbers as an array of one dimension, not empty."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{name} must be a list of at least one number, got shape {array.shape}")
    return array


def require_all(name: str, values: Float64Array, holds: npt.NDArray[np.bool_], rule: str) -> None:
    """Refuses values by the first for which a rule does not hold."""
    if not holds.all():
        first = int(np.argmin(holds))
        raise ValueError(f"{name}[{first}] must be {rule}, got {values[first]}")
