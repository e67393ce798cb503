"""There and back: images encoded to the noise that generates them, and drawn from it again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from stepfuse.analysis.experiments.sampling import counted, require_count
from stepfuse.engine import Engine
from stepfuse.serving.in_flight import Images

if TYPE_CHECKING:
    pass

KEPT_IMAGES = 10


def refinements_text(refinements: int) -> str:
    """Such as ``1 refinement`` or ``2 refinements``."""
    return f"{refinements} refinement{'s' * (refinements != 1)}"


@dataclass(frozen=True)
class RoundTripRow:
    """One step count and number of refinements.

    Attributes:
        sampler: ``ddim``, there and back.
        steps: DDIM steps each way.
        refinements: Fixed-point iterations a step on the way there.
        passes: Network passes an image, both ways, as the engine counted them.
        mse: Mean squared error of the images that come back.
        mse_worst: That of the worst image.
        noise_std: Standard deviation of the noise found; 1 if it is what the sampler starts from.
    """

    sampler: str
    steps: int
    refinements: int
    passes: float
    mse: float
    mse_worst: float
    noise_std: float


@dataclass(frozen=True, eq=False)
class RoundTrip:
    """What ``round_trip`` found.

    Attributes:
        rows: By refinements, then by steps.
        images_encoded: How many images went there and back.
        conditioned: Whether the network was told what they are.
        guidance_scale: Both ways.
        data_range: Least and greatest value of an image.
        images: Some of them, shape (n, *shape).
        noise: The noise found with the most steps and refinements, the same shape.
        returned: What came back with the most steps: shape (2, n, *shape), by the fewest refinements and the most.
    """

    rows: tuple[RoundTripRow, ...]
    images_encoded: int
    conditioned: bool
    guidance_scale: float
    data_range: tuple[float, float]
    images: Images = field(repr=False)
    noise: Images = field(repr=False)
    returned: Images = field(repr=False)


def round_trip(
    engine: Engine,
    images: npt.ArrayLike,
    *,
    steps: Sequence[int] = (10, 25, 50, 100, 200),
    refinements: Sequence[int] = (0, 1, 2),
    cond: Any = None,
    guidance_scale: float = 1.0,
    progress: bool = False,
) -> RoundTrip:
    """Encodes images and draws them again, at several step counts and numbers of refinements.

    Args:
        engine: Encodes and draws.
        images: Shape (n, *shape), floating point, in the model's data range.
        steps: DDIM steps each way.
        refinements: As in ``Engine.encode``: 0 is plain DDIM inversion.
        cond: What the network is told, both ways, as in ``Engine.sample``.
        guidance_scale: Both ways.
        progress: Whether bars are shown.

    Raises:
        ValueError: If a bound is broken; the message carries the value received.
        TypeError: If an argument is of the wrong kind.
    """
    for name, counts, least in (("steps", steps, 1), ("refinements", refinements, 0)):
        if not counts:
            raise ValueError(f"{name} must be at least one, got none")
        for count in counts:
            require_count(name, count, least)
    given = np.asarray(images)
    rows, found = [], {}
    for rounds in sorted(refinements):
        for count in sorted(steps):
            with counted(engine) as passes:
                noise = engine.encode(
                    given, steps=count, cond=cond, guidance_scale=guidance_scale, refinements=rounds, progress=progress
                )
                back = engine.sample(
                    len(given), noise=noise, sampler="ddim", eta=0.0, steps=count, cond=cond,
                    guidance_scale=guidance_scale, seed=0, progress=progress,
                )  # fmt: skip
            errors = np.mean((back.astype(np.float64) - given).reshape(len(given), -1) ** 2, axis=1)
            rows.append(
                RoundTripRow(
                    sampler="ddim",
                    steps=count,
                    refinements=rounds,
                    passes=passes.count / len(given),
                    mse=float(errors.mean()),
                    mse_worst=float(errors.max()),
                    noise_std=float(noise.std(dtype=np.float64)),
                )
            )
            found[rounds] = noise[:KEPT_IMAGES], back[:KEPT_IMAGES]  # in the end, those of the most steps
    fewest, most = found[min(refinements)], found[max(refinements)]
    return RoundTrip(
        tuple(rows),
        len(given),
        cond is not None,
        guidance_scale,
        engine.info.data_range,
        given[:KEPT_IMAGES].astype(np.float32),
        most[0],
        np.stack([fewest[1], most[1]]),
    )
