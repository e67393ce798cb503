"""A mixture of Gaussians, whose noise prediction is known exactly, so that all error is the sampler's."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from stepfuse.backends.host.callable import DenoiserFunction
from stepfuse.engine import Engine
from stepfuse.samplers.schedule import NoiseSchedule

Float64Array = npt.NDArray[np.float64]


class GaussianMixture:
    """Data from K isotropic Gaussians.

    Args:
        means: Their centres, (K, D).
        spreads: Their standard deviations, (K,), above 0; a scalar holds for all.
        weights: Their shares, (K,), above 0, normalised to a sum of 1; None makes them equal.

    Attributes:
        means: Shape (K, D), float64, read-only, and so are the others.
        spreads: Shape (K,).
        weights: Shape (K,), adding up to 1.

    Raises:
        ValueError: If ``means`` is not (K, D) and finite, or ``spreads`` or ``weights`` is neither a scalar nor (K,),
            or not finite and above 0.

    Examples:
        >>> from stepfuse.analysis import GaussianMixture
        >>> mixture = GaussianMixture([[1.0, 0.0], [-1.0, 0.0]], 0.1)
        >>> mixture.dimensions, mixture.draw(3, seed=0).shape, mixture.log_density([[1.0, 0.0]]).shape
        (2, (3, 2), (1,))
        >>> denoiser = mixture.denoiser(sf.NoiseSchedule.linear())  # the exact prediction, as a network's
        >>> clean, noise = mixture.expected([[1.0, 0.0]], signal=0.8, noise=0.6)
        >>> with mixture.engine(sf.NoiseSchedule.linear()) as engine:
        ...     engine.sample(5, sampler="ddim", steps=10).shape
        (5, 2)
    """

    def __init__(self, means: npt.ArrayLike, spreads: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> None:
        self.means: Float64Array = np.array(means, dtype=np.float64)
        if self.means.ndim != 2 or not self.means.size or not np.isfinite(self.means).all():
            raise ValueError(f"means must be finite, of shape (components, dimensions), got {means!r}")
        self.spreads = _one_each("spreads", spreads, len(self.means))
        shares = _one_each("weights", 1.0 if weights is None else weights, len(self.means))
        self.weights = shares / shares.sum()
        for values in (self.means, self.spreads, self.weights):
            values.flags.writeable = False

    @property
    def dimensions(self) -> int:
        """Number of dimensions D."""
        return int(self.means.shape[1])

    def draw(self, n: int, seed: int = 0) -> Float64Array:
        """Exact samples of the data, shape (n, D): the same for the same seed."""
        rng = np.random.default_rng(seed)
        component = rng.choice(len(self.means), n, p=self.weights)
        around = self.spreads[component, None] * rng.standard_normal((n, self.dimensions))
        return np.asarray(self.means[component] + around)

    def log_density(self, x: npt.ArrayLike, signal: npt.ArrayLike = 1.0, noise: npt.ArrayLike = 0.0) -> Float64Array:
        """Logarithm of the density of ``signal * x0 + noise * z``; by default that of the data.

        Args:
            x: Points, (n, D).
            signal: One for all points, or (n,).
            noise: One for all points, or (n,).

        Returns:
            Shape (n,).
        """
        logits, _, _ = self._components(x, signal, noise)
        most = logits.max(1)
        return np.asarray(most + np.log(np.exp(logits - most[:, None]).sum(1)))

    def expected(
        self, x: npt.ArrayLike, signal: npt.ArrayLike, noise: npt.ArrayLike
    ) -> tuple[Float64Array, Float64Array]:
        """Posterior means of the data and the noise in ``x = signal * x0 + noise * z``: E[x0 | x] and E[z | x].

        In component k, x is normal with mean signal m_k and variance v_k = signal² s_k² + noise², so that
        E[x0 | x, k] = m_k + signal s_k² (x - signal m_k) / v_k and E[z | x, k] = noise (x - signal m_k) / v_k. Each is
        averaged with the posterior weights of the components. By Tweedie's formula (Efron, 2011) E[z | x] is
        -noise times the gradient of ``log_density``, which the tests compare it with.

        Args:
            x: Points, (n, D).
            signal: One for all points, or (n,).
            noise: One for all points, or (n,).

        Returns:
            Two arrays of shape (n, D).
        """
        logits, offsets, variances = self._components(x, signal, noise)
        posterior = np.exp(logits - logits.max(1, keepdims=True))
        posterior /= posterior.sum(1, keepdims=True)
        standing = (posterior / variances)[:, :, None] * offsets
        towards = (self.spreads[:, None] ** 2 * standing).sum(1)
        return posterior @ self.means + _column(signal) * towards, _column(noise) * standing.sum(1)

    def denoiser(self, schedule: NoiseSchedule) -> DenoiserFunction:
        """The ideal network for this data, as ``Engine.from_callable`` takes it.

        It predicts the noise, or ``z - x0`` on a flow schedule, and ignores conditioning.
        """

        def predict(x: npt.NDArray[Any], t: npt.NDArray[Any], _cond: Any) -> Float64Array:
            data, noise = self.expected(x, *schedule.levels(t))
            return noise - data if schedule.is_flow else noise

        return predict

    def engine(self, schedule: NoiseSchedule, *, max_rows: int | None = None) -> Engine:
        """An engine whose network is ``denoiser``; its samples have shape (D,).

        Args:
            schedule: Noise levels.
            max_rows: As in ``Engine.from_callable``.
        """
        return Engine.from_callable(
            self.denoiser(schedule),
            shape=(self.dimensions,),
            schedule=schedule,
            prediction_type="flow" if schedule.is_flow else "epsilon",
            max_rows=max_rows,
        )

    def _components(
        self, x: npt.ArrayLike, signal: npt.ArrayLike, noise: npt.ArrayLike
    ) -> tuple[Float64Array, Float64Array, Float64Array]:
        """Log of weight times density (n, K), offset (n, K, D), variance (n or 1, K), a component a column."""
        points = np.asarray(x, dtype=np.float64)
        if points.ndim != 2 or points.shape[1] != self.dimensions:
            raise ValueError(f"x must have shape (points, {self.dimensions}), got {points.shape}")
        offsets = points[:, None, :] - _column(signal)[:, :, None] * self.means
        variances = (_column(signal) * self.spreads) ** 2 + _column(noise) ** 2
        exponent = (offsets**2).sum(2) / variances + self.dimensions * np.log(2 * np.pi * variances)
        return np.log(self.weights) - exponent / 2, offsets, variances


def _one_each(name: str, values: npt.ArrayLike, count: int) -> Float64Array:
    given = np.asarray(values, dtype=np.float64)
    if given.shape not in ((), (count,)):
        raise ValueError(f"{name} must be one number, or one for each of {count} components, got shape {given.shape}")
    if not (np.isfinite(given) & (given > 0)).all():
        raise ValueError(f"{name} must be above 0 and finite, got {values!r}")
    return np.array(np.broadcast_to(given, (count,)))


def _column(values: npt.ArrayLike) -> Float64Array:
    """Shape (n, 1), or (1, 1) for one number."""
    return np.reshape(np.asarray(values, dtype=np.float64), (-1, 1))
