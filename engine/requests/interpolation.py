"""Walks between two noises, and grids between four."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from stepfuse.arguments import whole_number

Path = Literal["slerp", "lerp"]

# Below this angle the great circle and the straight line are the same in float64; as near to a half turn there is none.
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
        ValueError: If shapes differ, ``n`` is below 2, ``path`` is unknown, or slerp meets noise of length 0 or two
            noises that point in opposite directions.

    Examples:
        >>> from stepfuse.interpolation import interpolate_noise
        >>> z0, z1 = sf.normal(0, (1, 28, 28)), sf.normal(1, (1, 28, 28))
        >>> interpolate_noise(z0, z1, n=5).shape
        (5, 1, 28, 28)
    """
    start, end = np.asarray(z0, dtype=np.float64), np.asarray(z1, dtype=np.float64)
    if start.shape != end.shape:
        raise ValueError(f"z1 must have the shape of z0, {start.shape}, got {end.shape}")
    n = _two_or_more("n", n)
    return _walk(start, end, n, path).astype(np.float32)


def interpolate_noise_grid(
    corners: npt.ArrayLike, rows: int, columns: int, path: Path = "slerp"
) -> npt.NDArray[np.float32]:
    """``rows`` × ``columns`` noises between four corners, the corners included.

    The top and the bottom row are walks between their corners; each column is a walk from the one to the other. So all
    four edges are those of ``interpolate_noise``, and with ``lerp`` the whole is bilinear. A slerp of slerps depends on
    the order: inside, walking down first would give slightly different noises.

    Args:
        corners: Four noises, shape (4, *shape) or (2, 2, *shape): top left, top right, bottom left, bottom right.
        rows: Points down, at least 2.
        columns: Points across, at least 2.
        path: As in ``interpolate_noise``.

    Returns:
        Shape (rows, columns, *shape), float32.

    Raises:
        ValueError: If there are not four corners, ``rows`` or ``columns`` is below 2, or as in ``interpolate_noise``.

    Examples:
        >>> from stepfuse.interpolation import interpolate_noise_grid
        >>> corners = [sf.normal(seed, (1, 28, 28)) for seed in range(4)]
        >>> interpolate_noise_grid(corners, rows=3, columns=4).shape
        (3, 4, 1, 28, 28)
    """
    given = np.asarray(corners, dtype=np.float64)
    if given.shape[:2] == (2, 2):
        given = given.reshape(4, *given.shape[2:])
    if given.shape[:1] != (4,):
        raise ValueError(f"corners must have shape (4, *shape) or (2, 2, *shape), got {given.shape}")
    rows, columns = _two_or_more("rows", rows), _two_or_more("columns", columns)
    top, bottom = _walk(given[0], given[1], columns, path), _walk(given[2], given[3], columns, path)
    down = [_walk(above, below, rows, path) for above, below in zip(top, bottom, strict=True)]
    return np.stack(down, axis=1).astype(np.float32)


def _two_or_more(name: str, points: int) -> int:
    points = whole_number(name, points)
    if points < 2:
        raise ValueError(f"{name} must be at least 2, got {points}")
    return points


def _walk(start: npt.NDArray[np.float64], end: npt.NDArray[np.float64], n: int, path: Path) -> npt.NDArray[np.float64]:
    share = np.linspace(0.0, 1.0, n).reshape(n, *[1] * start.ndim)
    if path == "lerp":
        weights = 1 - share, share
    elif path == "slerp":
        lengths = np.linalg.norm(start) * np.linalg.norm(end)
        if not lengths > 0:
            raise ValueError("slerp needs noise of a length above 0, got zeros: use path='lerp'")
        angle = np.arccos(np.clip(np.vdot(start, end) / lengths, -1.0, 1.0))
        if angle > np.pi - _LEAST_ANGLE:
            raise ValueError(f"slerp needs noises less than half a turn apart, got {angle:.6f} rad: use path='lerp'")
        straight = angle < _LEAST_ANGLE
        weights = (1 - share, share) if straight else _arc(angle, share)
    else:
        raise ValueError(f"path must be 'slerp' or 'lerp', got {path!r}")
    walk: npt.NDArray[np.float64] = weights[0] * start + weights[1] * end
    return walk


def _arc(angle: float, share: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    return np.sin((1 - share) * angle) / np.sin(angle), np.sin(share * angle) / np.sin(angle)
