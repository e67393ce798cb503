"""The sliced Wasserstein distance between two sets of points."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_DIRECTIONS = 64


def sliced_wasserstein(points: npt.ArrayLike, exact: npt.ArrayLike) -> float:
    """Wasserstein-1 distance of two sets of points, averaged over projections onto 64 directions.

    In the plane the directions are evenly spaced, in other dimensions random and always the same. The first set, of n
    points, is compared with the n quantiles of the second.

    Args:
        points: (n, D).
        exact: (m, D).
    """
    given = np.asarray(points, dtype=np.float64)
    directions = _directions(given.shape[1])
    a = np.sort(given @ directions, axis=0)
    shares = (np.arange(len(a)) + 0.5) / len(a)
    return float(np.abs(a - np.quantile(np.asarray(exact) @ directions, shares, axis=0)).mean())


def _directions(dimensions: int) -> npt.NDArray[np.float64]:
    """Unit vectors, one a column."""
    if dimensions == 2:
        angle = np.pi * np.arange(_DIRECTIONS) / _DIRECTIONS
        return np.stack([np.cos(angle), np.sin(angle)])
    drawn = np.random.default_rng(0).standard_normal((dimensions, _DIRECTIONS))
    return np.asarray(drawn / np.linalg.norm(drawn, axis=0))
