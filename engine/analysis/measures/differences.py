"""How much samples differ: mean squared errors, variance across runs, equality of bits."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from stepfuse.analysis.measures.frechet import Images


def pairwise_mse(samples: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Mean squared error between every two of n samples, shape (n (n - 1) / 2,)."""
    flat = flattened(samples)
    first, second = np.triu_indices(len(flat), k=1)
    return np.array([mse(flat[i], flat[j]) for i, j in zip(first, second, strict=True)])


def mse(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Mean squared difference of two arrays of one shape."""
    return float(np.mean((np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)) ** 2))


def variance(runs: npt.ArrayLike) -> float:
    """Unbiased variance over the first axis, averaged over all others; exactly 0 where all runs are equal."""
    return float(np.asarray(runs, dtype=np.float64).var(axis=0, ddof=1).mean())


def identical(runs: Images) -> bool:
    """Whether all runs are the same bits."""
    bits = np.ascontiguousarray(runs).view(np.uint32)
    return bool((bits == bits[:1]).all())


def flattened(samples: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Each sample as a row of float64."""
    array = np.asarray(samples, dtype=np.float64)
    return array.reshape(len(array), -1)
