"""The quantile function of the beta distribution, in numpy alone."""

from __future__ import annotations

from math import gamma
from typing import cast

import numpy as np
import numpy.typing as npt

from stepfuse.samplers.schedule import Float64Array

_TERMS = 54  # of a series in x of at most 1/2: what is left out is below 2^-53
_ITERATIONS = 20  # of Newton's method, at most: with both parameters 0.6 it converges in six


def beta_quantile(p: npt.ArrayLike, a: float, b: float) -> Float64Array:
    """Where the beta distribution with parameters ``a`` and ``b`` has the share ``p`` below it, as scipy's ``ppf``.

    Each value is sought from the end that it is nearer to, by Newton's method on u = x^a: as a function of u the
    regularised incomplete beta function is nearly a line there, with I ≈ u / (a B(a, b)), and convex for b < 1.

    Args:
        p: Probabilities, 0 to 1, of any shape.
        a: Above 0, at most 5 or so: the series then has no cancellation to speak of.
        b: The same.

    Returns:
        Quantiles, 0 to 1, of ``p``'s shape, within about 1e-14.
    """
    p = np.asarray(p, dtype=np.float64)
    low = p <= _share_below(np.array(0.5), a, b)
    # Each half by itself, with the other's probabilities as 0.
    below = _lower_quantile(np.where(low, p, 0.0), a, b)
    above = 1 - _lower_quantile(np.where(low, 0.0, 1 - p), b, a)
    return np.where(low, below, above)


def _lower_quantile(p: Float64Array, a: float, b: float) -> Float64Array:
    """Quantiles of at most 1/2."""
    scale = a * _beta(a, b)
    largest = 0.5**a
    u = np.minimum(p * scale, largest)
    for _ in range(_ITERATIONS):
        x = u ** (1 / a)
        change = (_share_below(x, a, b) - p) * scale * (1 - x) ** (1 - b)
        u = np.clip(u - change, 0.0, largest)
        if np.all(np.abs(change) <= 1e-15 * u):
            break
    return cast("Float64Array", u ** (1 / a))


def _share_below(x: Float64Array, a: float, b: float) -> Float64Array:
    """The regularised incomplete beta function for x of at most 1/2, by its power series (DLMF 8.17.7)."""
    total, term = np.ones_like(x), np.ones_like(x)
    for k in range(1, _TERMS):
        term = term * x * (k - b) / k
        total = total + term * a / (a + k)
    return x**a / (a * _beta(a, b)) * total


def _beta(a: float, b: float) -> float:
    return gamma(a) * gamma(b) / gamma(a + b)
