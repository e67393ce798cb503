"""What a static batch begins with: its states, and the rows and conditioning of the first forward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from stepfuse._core import cuda
from stepfuse.bundle.model_info import ModelInfo
from stepfuse.requests.resolution import ResolvedRequest
from stepfuse.samplers.noise import normal
from stepfuse.samplers.table import COLUMNS

S, T = COLUMNS.index("s"), COLUMNS.index("t")

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class StaticBatch:
    """B samples that share forwards of R rows from their first step to their last.

    Attributes:
        x: First states, (B, *shape) float32.
        seed: Keys of their noise, (B,) int64: the bits of the unsigned seeds.
        sample: The first forward's input, (R, *shape) float32.
        timestep: Its timesteps, (R,), of the network's dtype for them.
        cond: (R, *input shape) by input name, null where a sample gives none.
        known: Image, mask and first noise of each sample with a known region, (B, 3, *shape) float32, zero for others;
            None where no sample has one.
    """

    x: Array
    seed: Array
    sample: Array
    timestep: Array
    cond: dict[str, Array]
    known: Array | None = None


def rows_of(request: ResolvedRequest) -> int:
    """Most rows that a sample has in a forward, as ``Frames.slot_rows`` gives them."""
    return 1 if request.cond is None else 1 + bool((request.table["g"] != 1).any())


def split(requests: Sequence[ResolvedRequest], max_rows: int) -> list[slice]:
    """Which samples run together, in order, so that no forward has more than ``max_rows`` rows.

    Raises:
        ValueError: If a sample alone needs more than ``max_rows`` rows.
    """
    parts, start, used = [], 0, 0
    for index, request in enumerate(requests):
        rows = rows_of(request)
        if rows > max_rows:
            raise ValueError(f"a guided sample takes 2 rows of a forward, the largest has {max_rows}")
        if used + rows > max_rows:
            parts.append(slice(start, index))
            start, used = index, 0
        used += rows
    return [*parts, slice(start, len(requests))]


def frames_of(info: ModelInfo, requests: Sequence[ResolvedRequest]) -> cuda.Frames:
    """All that the steps of these samples of a network take from their tables."""
    return cuda.Frames(
        [
            (
                request.table.rows,
                request.cond is not None,
                request.table.adaptive_of(info.shape),
                None if (known := request.known_region) is None or known.mask is None else known.levels,
            )
            for request in requests
        ]
    )


def static_batch_of(
    info: ModelInfo, requests: Sequence[ResolvedRequest], frames: cuda.Frames, noise: Array | None = None
) -> StaticBatch:
    """What these samples begin with.

    Args:
        info: What the network is.
        requests: A request a sample.
        frames: Of the same requests.
        noise: Starting noise, (B, *shape) float32; None makes it from the seeds.
    """
    if noise is None:
        noise = np.stack([normal(request.seed, info.shape) for request in requests])
    x = np.stack([_first_state(request, one) for request, one in zip(requests, noise, strict=True)])
    rows = 1 + max(max(pair) for pair in frames.slot_rows)
    sample, timestep = np.zeros((rows, *info.shape), np.float32), np.zeros(rows, np.float32)
    cond = {name: np.repeat(spec.value(name, None)[np.newaxis], rows, axis=0) for name, spec in info.cond.items()}
    for slot, (request, pair) in enumerate(zip(requests, frames.slot_rows, strict=True)):
        first = request.table[0]
        for row, given in zip(pair, (request.cond, request.negative_cond), strict=True):
            if row < 0:
                continue
            sample[row], timestep[row] = first[S] * x[slot], first[T]
            for values, value in zip(cond.values(), given or (), strict=False):
                values[row] = value
    seeds = np.array([request.seed for request in requests], np.uint64).view(np.int64)
    whole = info.timestep_dtype == "int64"
    timestep = np.rint(timestep).astype(np.int64) if whole else timestep
    return StaticBatch(x, seeds, sample, timestep, cond, _known(requests, noise) if frames.needs.keep else None)


def _first_state(request: ResolvedRequest, noise: Array) -> Array:
    if request.known_region is None:
        return noise * np.float32(request.table.init_scale)
    signal, share = request.known_region.levels[0]
    state: Array = signal * request.known_region.image.reshape(noise.shape) + share * noise
    return state


def _known(requests: Sequence[ResolvedRequest], noise: Array) -> Array:
    known = np.zeros((len(requests), 3, *noise.shape[1:]), np.float32)
    for parts, request, first in zip(known, requests, noise, strict=True):
        if request.known_region is not None and request.known_region.mask is not None:
            given = request.known_region.image, request.known_region.mask, first
            parts[:] = [values.reshape(first.shape) for values in given]
    return known
