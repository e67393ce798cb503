"""The Fréchet distance between two sets of features, taken as Gaussians of their moments.

With the features of an Inception network this number is called FID. Here the features are any function's, so its values
compare only under the same function and with equally many images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from stepfuse.display import one_line

Images = npt.NDArray[np.float32]
FeatureFunction = Callable[[Images], npt.NDArray[np.floating[Any]]]
"""A function from samples, (n, *shape) float32, to features, (n, F), in the place of a judge.

Examples:
    >>> def features(samples):
    ...     return samples.reshape(len(samples), -1)[:, ::100]
    >>> features(np.zeros((2, 1, 28, 28), np.float32)).shape
    (2, 8)
"""

_ROUNDING = 1e-9  # of the largest eigenvalue: the error of an estimate in float64; float32 moments are refused


@dataclass(frozen=True, eq=False)
class Statistics:
    """The first two moments of a set of features.

    Attributes:
        mean: Their mean, (F,) float64.
        cov: Their covariance, (F, F) float64, unbiased (divided by count - 1).
        count: Number of rows that they were taken over.

    Raises:
        ValueError: If ``mean`` is not (F,) or ``cov`` not (F, F), a number is not finite, ``count`` is below 2, or
            ``cov`` is not symmetric with eigenvalues of at least 0, to rounding.

    Examples:
        >>> from stepfuse.analysis import Statistics
        >>> Statistics.of(np.random.default_rng(0).standard_normal((100, 3))).mean.shape
        (3,)
    """

    mean: npt.NDArray[np.float64]
    cov: npt.NDArray[np.float64]
    count: int

    __repr__ = one_line

    def __post_init__(self) -> None:
        mean, cov = np.asarray(self.mean, np.float64), np.asarray(self.cov, np.float64)
        if mean.ndim != 1 or not mean.size or cov.shape != (mean.size, mean.size):
            raise ValueError(f"mean and cov must have shapes (F,) and (F, F), got {mean.shape} and {cov.shape}")
        if not (np.isfinite(mean).all() and np.isfinite(cov).all()):
            raise ValueError("mean and cov must be finite, got NaN or infinity")
        if not np.allclose(cov, cov.T, rtol=0.0, atol=_ROUNDING * np.abs(cov).max()):
            raise ValueError(f"cov must be symmetric, got a difference of {np.abs(cov - cov.T).max():.3g}")
        if self.count < 2:
            raise ValueError(f"count must be at least 2, got {self.count}")
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "cov", (cov + cov.T) / 2.0)
        values = np.linalg.eigvalsh(self.cov)
        if values[0] < -_ROUNDING * np.abs(values).max():
            raise ValueError(f"cov must have no negative eigenvalue, got {values[0]:.3g}")

    @classmethod
    def of(cls, features: npt.ArrayLike) -> Statistics:
        """Takes the moments of features.

        Args:
            features: (n, F) numbers, a row an image, with n > F.

        Raises:
            ValueError: If they are not real numbers (n, F), one is not finite, all rows are equal, or there are no more
                rows than columns, which makes the covariance singular for any images.
        """
        given = np.asarray(features)
        if given.ndim != 2 or not given.size:
            raise ValueError(f"features must have shape (images, features), got {given.shape}")
        if given.dtype.kind not in "fiu":
            raise ValueError(f"features must be real numbers, got {given.dtype}")
        rows = given.astype(np.float64)
        if wrong := int((~np.isfinite(rows)).any(1).sum()):
            raise ValueError(f"features must be finite, got NaN or infinity in {wrong} of {len(rows)} rows")
        count, size = rows.shape
        if count > 1 and (rows == rows[0]).all():
            raise ValueError(f"features must differ between images, got the same row {count} times")
        if count <= size:
            raise ValueError(
                f"there must be more images than features, or the covariance is singular:"
                f" got {count} images of {size} features"
            )
        return cls(mean=rows.mean(0), cov=np.atleast_2d(np.cov(rows, rowvar=False)), count=count)


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """The Fréchet distance between two Gaussians, squared as it is in FID, and at least 0.

        d² = |m_a - m_b|² + tr(C_a + C_b - 2 (C_a C_b)^(1/2))

    of Dowson and Landau (1982), which Heusel et al. (2017) brought to generated images.

    The trace of the root is the sum of the singular values of C_a^(1/2) C_b^(1/2). In this form every matrix stays
    real and symmetric, and a covariance that is nearly singular (a feature that never fires) costs no digits, where a
    general matrix root of C_a C_b returns complex numbers and loses half of them. A result that rounding makes
    negative, for equal moments, is returned as 0.

    Args:
        a: Moments of one set of features.
        b: Moments of the other, of the same function.

    Raises:
        ValueError: If the numbers of features differ.

    Examples:
        >>> from stepfuse.analysis import Statistics, frechet_distance
        >>> features = np.random.default_rng(0).standard_normal((100, 3))
        >>> round(frechet_distance(Statistics.of(features), Statistics.of(features + 1.0)), 6)
        3.0
    """
    if a.mean.size != b.mean.size:
        raise ValueError(f"both sets must have as many features, got {a.mean.size} and {b.mean.size}")
    shift = a.mean - b.mean
    overlap = np.linalg.svd(_root(a.cov) @ _root(b.cov), compute_uv=False).sum()
    return max(0.0, float(shift @ shift + np.trace(a.cov) + np.trace(b.cov) - 2.0 * overlap))


def _root(cov: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The symmetric square root of a covariance."""
    values, vectors = np.linalg.eigh(cov)
    root: npt.NDArray[np.float64] = (vectors * np.sqrt(values.clip(min=0.0))) @ vectors.T
    return root
