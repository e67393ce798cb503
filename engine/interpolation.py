"""Walks between two noises."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

Path = Literal["slerp", "lerp"]

# Below this angle the great circle and the straight line are the same in float64.
_LEAST_ANGLE = 1e-6


def interpolate_noise(z0: npt.ArrayLike, z1: npt.ArrayLike, n: int, path: Path = "slerp") -> npt.NDArray[np.float32]:
    """``n`` noises from ``z0`` to ``z1``, both included.

    Args:
        z0: Any shape.
        z1: The same shape.
        n: Number of points, at least 2.
        path: ``slerp`` follows the great circle (Shoemake, 1985) and keeps the length that normal noise has; ``lerp``
            is the straight line, whose middle is shorter.

    Returns:
        Shape (n, *shape), float32.

    Raises:
        ValueError: If shapes differ, ``n`` is below 2, ``path`` is unknown, or slerp meets noise of length 0.
    """
    start, end = np.asarray(z0, dtype=np.float64), np.asarray(z1, dtype=np.float64)
    if start.shape != end.shape:
        raise ValueError(f"z1 must have the shape of z0, {start.shape}, got {end.shape}")
    if n < 2:
        raise ValueError(f"n must be at least 2, got {n}")
    share = np.linspace(0.0, 1.0, n).reshape(n, *[1] * start.ndim)
    if path == "lerp":
        weights = 1 - share, share
    elif path == "slerp":
        lengths = np.linalg.norm(start) * np.linalg.norm(end)
        if not lengths > 0:
            raise ValueError("slerp needs noise of a length above 0, got zeros: use path='lerp'")
        angle = np.arccos(np.clip(np.vdot(start, end) / lengths, -1.0, 1.0))
        straight = angle < _LEAST_ANGLE
        weights = (1 - share, share) if straight else _arc(angle, share)
    else:
        raise ValueError(f"path must be 'slerp' or 'lerp', got {path!r}")
    walk: npt.NDArray[np.float32] = (weights[0] * start + weights[1] * end).astype(np.float32)
    return walk


def _arc(angle: float, share: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    return np.sin((1 - share) * angle) / np.sin(angle), np.sin(share * angle) / np.sin(angle)
