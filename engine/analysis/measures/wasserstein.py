"""The sliced Wasserstein distance between two sets of points in the plane."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_DIRECTIONS = 64


def sliced_wasserstein(points: npt.ArrayLike, exact: npt.ArrayLike) -> float:
    """Wasserstein-1 distance of two sets of points in the plane, averaged over projections onto 64 directions.

    The first set, of n points, is compared with the n quantiles of the second.
    """
    angle = np.pi * np.arange(_DIRECTIONS) / _DIRECTIONS
    directions = np.stack([np.cos(angle), np.sin(angle)])
    a = np.sort(np.asarray(points, dtype=np.float64) @ directions, axis=0)
    shares = (np.arange(len(a)) + 0.5) / len(a)
    return float(np.abs(a - np.quantile(np.asarray(exact) @ directions, shares, axis=0)).mean())
