"""What a batch of samples begins with: its states, the first forward's rows, and what the network is told."""

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
class Batch:
    """B samples that share forwards of R rows.

    Attributes:
        x: First states, (B, *shape) float32.
        seed: Keys of their noise, (B,) int64: the bits of the unsigned seeds.
        sample: The first forward's input, (R, *shape) float32.
        timestep: Its timesteps, (R,), of the network's dtype for them.
        cond: (R, *input shape) by input name; what no sample says is null.
        known: Image, mask and first noise of the samples that keep a part of an image, (B, 3, *shape) float32, zero of
            others; None where none does.
    """

    x: Array
    seed: Array
    sample: Array
    timestep: Array
    cond: dict[str, Array]
    known: Array | None = None


def rows_of(request: ResolvedRequest) -> int:
    """Rows of every forward that are a sample's: as ``Frames.slot_rows`` has it, most of them at once."""
    return 1 if request.cond is None else 1 + bool((request.table["g"] != 1).any())


def split(requests: Sequence[ResolvedRequest], max_rows: int) -> list[slice]:
    """Which samples run together, in order, so that no forward has more than ``max_rows`` rows.

    Raises:
        ValueError: If one alone has.
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


def frames_of(requests: Sequence[ResolvedRequest]) -> cuda.Frames:
    """All that the steps of these samples take from their tables."""
    return cuda.Frames(
        [
            (
                request.table.rows,
                request.cond is not None,
                request.table.adaptive,
                None if (known := request.known_region) is None or known.mask is None else known.levels,
            )
            for request in requests
        ]
    )


def batch_of(
    info: ModelInfo, requests: Sequence[ResolvedRequest], frames: cuda.Frames, noise: Array | None = None
) -> Batch:
    """What these samples begin with.

    Args:
        info: What the network is.
        requests: A request a sample.
        frames: Of the same requests.
        noise: Starting noise, (B, *shape) float32; None draws it from the seeds.
    """
    if noise is None:
        noise = np.stack([normal(request.seed, info.shape) for request in requests])
    x = np.stack([_first_state(request, one) for request, one in zip(requests, noise, strict=True)])
    rows = 1 + max(max(pair) for pair in frames.slot_rows)
    sample, timestep = np.zeros((rows, *info.shape), np.float32), np.zeros(rows, np.float32)
    cond = {name: np.repeat(spec.value(name, None)[np.newaxis], rows, axis=0) for name, spec in info.cond.items()}
    for slot, (request, pair) in enumerate(zip(requests, frames.slot_rows, strict=True)):
        first = request.table[0]
        for row, told in zip(pair, (request.cond, request.negative_cond), strict=True):
            if row < 0:
                continue
            sample[row], timestep[row] = first[S] * x[slot], first[T]
            for values, value in zip(cond.values(), told or (), strict=False):
                values[row] = value
    seeds = np.array([request.seed for request in requests], np.uint64).view(np.int64)
    whole = info.timestep_dtype == "int64"
    timestep = np.rint(timestep).astype(np.int64) if whole else timestep
    return Batch(x, seeds, sample, timestep, cond, _known(requests, noise) if frames.needs.keep else None)


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


def step_values(at: dict[str, int], rows: int, n: int, *, whole: bool) -> dict[str, int]:
    """The step's arguments that never change, over contiguous memory.

    Args:
        at: Addresses of ``x``, ``h``, ``seed``, ``sample``, ``timestep`` and ``prediction``, ``rows`` rows each.
        rows: Most rows of a forward.
        n: Elements of a sample.
        whole: Whether the network is given timesteps rounded, as int64.
    """
    return {
        **dict.fromkeys(("x", "out"), at["x"]),
        **dict.fromkeys(("x_stride", "out_stride", "prediction_stride", "next_input_stride", "n"), n),
        **dict.fromkeys(("prediction_rows", "next_input_rows"), rows),
        **{name: at[name] for name in ("h", "seed", "prediction")},
        "next_input": at["sample"],
        "next_t": 0 if whole else at["timestep"],
        "next_t_int": at["timestep"] if whole else 0,
        "x0": 0,
        "nonfinite": 0,
    }
