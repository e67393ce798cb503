"""What a figure shows beside its rows, kept in a report so that it can be drawn again: pictures in 8 bits, and paths.

A figure drawn from what was kept is the same to the pixel, since pictures are shown in 8 bits anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import numpy.typing as npt

from stepfuse.analysis.experiments.mixture import GaussianMixture
from stepfuse.analysis.experiments.paths import Paths
from stepfuse.analysis.figures.paths import traced_samples
from stepfuse.analysis.figures.pictures import as_levels, drawable
from stepfuse.analysis.figures.round_trip import NOISE_RANGE
from stepfuse.files.atomic import write_atomically
from stepfuse.files.npz import read_npz

MOST_BYTES = 1 << 30
Array = npt.NDArray[Any]
_MIXTURE = ("means", "spreads", "weights")


def arrays_of(result: Any) -> dict[str, Array]:
    """The arrays of an experiment's result that its figure needs, by the names that they have in its ``.npz``."""
    if isinstance(result, Paths):
        mixture = {f"mixture_{part}": getattr(result.mixture, part) for part in _MIXTURE}
        return mixture | {f"trajectories_{i}": states for i, states in enumerate(_drawn_states(result))}
    found = {one.name: getattr(result, one.name) for one in fields(result)}
    return {
        name: _levels(value, _range(name, result)) for name, value in found.items() if isinstance(value, np.ndarray)
    }


def write_arrays(folder: Path, name: str, result: Any) -> None:
    """Writes the arrays of an experiment's result as ``NAME.npz``, atomically."""
    save: Callable[..., None] = np.savez_compressed
    write_atomically(folder / f"{name}.npz", lambda scratch: save(scratch, **arrays_of(result)))


def read_arrays(folder: Path, name: str) -> dict[str, Array]:
    """The arrays of an experiment's ``NAME.npz``.

    Raises:
        ValueError: If the file is missing, as in reports of earlier versions, or is no archive of arrays.
    """
    path = folder / f"{name}.npz"
    if not path.is_file():
        raise ValueError(f"{path} must be there to draw its figure again: run the experiment with --only {name}")
    return read_npz(path.read_bytes(), MOST_BYTES)


def restored(kind: type, record: Mapping[str, Any], arrays: Mapping[str, Array]) -> Any:
    """The result that a record and its arrays were written of; states of paths that no figure shows are NaN.

    Args:
        kind: Its dataclass.
        record: Its JSON: rows by the name of their field, and ``settings``.
        arrays: What ``arrays_of`` gave.

    Raises:
        KeyError: If a field is missing.
        TypeError: If rows or settings are not those of ``kind``.
        ValueError: If they are, and an array has another shape.
    """
    values: dict[str, Any] = {name: _untyped(value) for name, value in record["settings"].items()}
    for name, hint in get_type_hints(kind).items():
        row, *_ = (*get_args(hint), None)
        if isinstance(row, type) and is_dataclass(row):
            values[name] = tuple(
                row(**{column: _untyped(value) for column, value in given.items()}) for given in record[name]
            )
    if kind is Paths:
        values["mixture"] = GaussianMixture(*(arrays[f"mixture_{part}"] for part in _MIXTURE))
        values["trajectories"] = tuple(arrays[f"trajectories_{i}"] for i in range(len(values["rows"])))
        return Paths(**values)
    low, high = values["data_range"]
    for name, levels in arrays.items():
        start, stop = NOISE_RANGE if name == "noise" else (low, high)
        values[name] = (start + levels / 255.0 * (stop - start)).astype(np.float32)
    return kind(**values)


def _drawn_states(result: Paths) -> list[Array]:
    """The states of each sampler, NaN but for starts, ends and the paths that are drawn, which compresses well."""
    traced = traced_samples(result)
    found = []
    for states in result.trajectories:
        drawn = np.full_like(states, np.nan)
        drawn[:, [0, -1]] = states[:, [0, -1]]
        drawn[traced] = states[traced]
        found.append(drawn)
    return found


def _range(name: str, result: Any) -> tuple[float, float]:
    return NOISE_RANGE if name == "noise" else result.data_range


def _levels(values: Array, data_range: tuple[float, float]) -> npt.NDArray[np.uint8]:
    """Pictures in 8 bits; of samples that are none figures need the shape alone."""
    if not drawable(values.shape[-3:]):
        return np.zeros(values.shape, np.uint8)
    return as_levels(values, data_range)


def _untyped(value: Any) -> Any:
    """Lists of JSON as the tuples that they were."""
    return tuple(_untyped(one) for one in value) if isinstance(value, list) else value
