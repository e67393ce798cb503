"""The round trip: images encoded to the noise that generates them, and generated from it again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from stepfuse.analysis.experiments.sampling import counted, require_count
from stepfuse.engine import Engine
from stepfuse.serving.in_flight import Images

KEPT_IMAGES = 10


@dataclass(frozen=True)
class RoundTripRow:
    """One step count and number of refinements.

    Attributes:
        sampler: ``ddim``, for encoding and for sampling.
        steps: DDIM steps each way.
        refinements: Fixed-point iterations a step of the encoding.
        passes: Network passes an image, both ways, as the engine counted them.
        mse: Mean squared error of the returned images.
        mse_worst: That of the worst image.
        noise_std: Standard deviation of the encoded noise; that of a sampler's starting noise is 1.
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
    """Result of ``round_trip``.

    Attributes:
        rows: By refinements, then by steps.
        images_encoded: Number of images.
        conditioned: Whether the network had conditioning, both ways.
        guidance_scale: The guidance scale, both ways.
        data_range: Least and greatest value of an image.
        images: The first ``KEPT_IMAGES`` of them, shape (n, *shape).
        noise: Their noise encoded with the most steps and refinements, the same shape.
        returned: The images returned with the most steps, shape (2, n, *shape): of the fewest refinements, of the most.

    Examples:
        >>> from stepfuse.analysis import round_trip
        >>> with sf.Engine.load("fashion") as engine:
        ...     images = engine.sample(2, steps=4, seed=0)
        ...     found = round_trip(engine, images, steps=[4], refinements=[1])
        >>> found.returned.shape
        (2, 2, 1, 28, 28)
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
    """Encodes images and generates them again, at several step counts and numbers of refinements.

    Args:
        engine: Encodes and samples.
        images: Shape (n, *shape), floating point, in the model's data range.
        steps: DDIM steps each way.
        refinements: As in ``Engine.encode``: 0 is plain DDIM inversion.
        cond: Conditioning, both ways, as in ``Engine.sample``.
        guidance_scale: The guidance scale, both ways.
        progress: Whether progress bars are shown.

    Raises:
        ValueError: If ``images`` is empty, not finite, out of the data range or of another shape than (n, *shape);
            ``steps`` or ``refinements`` is empty; a step count is below 1 or above T; a number of refinements is
            negative; or ``Engine.sample`` refuses ``cond`` or ``guidance_scale``.
        TypeError: If a step count or a number of refinements is not an integer, or another argument is of a type that
            ``Engine.sample`` refuses.

    Examples:
        >>> from stepfuse.analysis import round_trip
        >>> with sf.Engine.load("fashion") as engine:
        ...     images = engine.sample(2, steps=4, seed=0)
        ...     found = round_trip(engine, images, steps=[4], refinements=[1])
        >>> found.images_encoded
        2
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
            found[rounds] = noise[:KEPT_IMAGES], back[:KEPT_IMAGES]  # the last are those of the most steps
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
