"""Compares an exported graph with the module that it was exported from."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from stepfuse.errors import ExportError
from stepfuse.export.onnx.inputs import Input
from stepfuse.export.onnx.parts import Part, split
from stepfuse.export.onnx.translation import evaluating
from stepfuse.extras import pip_install

try:
    import torch
except ImportError as error:
    raise ImportError(f"exporting needs torch ({error}): {pip_install('export')}") from error

if TYPE_CHECKING:
    import os

#: Bytes of weights of a graph that are in memory at once, unless one operator has more.
PART_BYTES = 30_000_000

#: Worst error of an output relative to its largest magnitude. Float32: two libraries add up the same products in
#: another order, through a hundred layers. Float16: each of these rounds to eleven bits, 5e-4.
TOLERANCES = {"float32": 1e-4, "float16": 2e-2}


def validate(
    path: str | os.PathLike[str],
    module: torch.nn.Module,
    inputs: Sequence[Input],
    outputs: Sequence[str],
    *,
    sizes: Mapping[str, Sequence[int]] | None = None,
    row_counts: Sequence[int] = (1, 2, 3),
    tolerance: float | None = None,
    precision: str = "float32",
) -> dict[str, float]:
    """Runs an exported graph in ONNX Runtime beside its module, on the same random inputs.

    First the module is run on all inputs, then the graph, part by part: beyond the module itself memory holds the
    weights of one part and what the largest operators compute, and not a copy of all weights.

    Args:
        path: The graph.
        module: What it was exported from, called as by ``export_onnx``.
        inputs: Its inputs.
        outputs: Names of its outputs.
        sizes: Values of the sizes that ``inputs`` name: the first of each with every number of rows, all combinations
            with the first number of rows.
        row_counts: Numbers of rows to try.
        tolerance: Largest error allowed of any output, relative to its largest magnitude; None: by ``precision``.
        precision: What the graph computes in.

    Returns:
        The worst error of each output, relative to its largest magnitude.

    Raises:
        ExportError: If an error is above the tolerance, a shape differs, or a number is not finite.
        ValueError: As in ``require_trials``.
    """
    require_trials(row_counts, tolerance)
    limit = TOLERANCES[precision] if tolerance is None else tolerance
    rng = np.random.default_rng(1)
    chosen_sizes = _combinations(sizes)
    trials = [(rows, chosen_sizes[0]) for rows in row_counts] + [(row_counts[0], one) for one in chosen_sizes[1:]]
    names = [", ".join([f"{rows} rows", *(f"{key} {size}" for key, size in chosen.items())]) for rows, chosen in trials]
    feeds = [{one.name: one.example(rows, chosen, rng) for one in inputs} for rows, chosen in trials]
    expected = [_reference(module, list(feed.values()), trial) for trial, feed in zip(names, feeds, strict=True)]
    found = _run(Path(path), outputs, feeds, names)
    worst = dict.fromkeys(outputs, 0.0)
    for trial, theirs, ours in zip(names, expected, found, strict=True):
        for name, reference, value in zip(outputs, theirs, ours, strict=True):
            worst[name] = max(worst[name], _error(name, trial, value, reference, limit))
    return worst


def require_trials(row_counts: Sequence[int], tolerance: float | None) -> None:
    """Checks arguments of ``validate``.

    Raises:
        ValueError: If ``row_counts`` is empty or has a number below 1, or ``tolerance`` is not above 0.
    """
    if not row_counts or min(row_counts) < 1:
        raise ValueError(f"row_counts must be one or more, each at least 1, got {tuple(row_counts)}")
    if tolerance is not None and not tolerance > 0:
        raise ValueError(f"tolerance must be above 0, got {tolerance}")


def _combinations(sizes: Mapping[str, Sequence[int]] | None) -> list[dict[str, int]]:
    given = sizes or {}
    return [dict(zip(given, values, strict=True)) for values in itertools.product(*given.values())]


def _reference(module: torch.nn.Module, feed: list[npt.NDArray[Any]], trial: str) -> list[npt.NDArray[Any]]:
    with evaluating(module):
        try:
            found = module(*map(torch.from_numpy, feed))
        except Exception as error:  # whatever the module raises
            raise ExportError(f"the module fails at {trial} in torch: {type(error).__name__}: {error}") from error
    return [one.numpy() for one in (found if isinstance(found, tuple | list) else (found,))]


def _run(
    path: Path, outputs: Sequence[str], feeds: Sequence[Mapping[str, npt.NDArray[Any]]], trials: Sequence[str]
) -> list[list[npt.NDArray[Any]]]:
    """The graph's outputs for each feed."""
    values: list[dict[str, Any]] = [dict(feed) for feed in feeds]
    parts = split(path, outputs, PART_BYTES)
    for part in parts:
        _run_part(part, path, path if len(parts) == 1 else part.serialized(values), values, trials)
    return [[known[name] for name in outputs] for known in values]


def _run_part(
    part: Part, path: Path, model: Path | bytes, values: Sequence[dict[str, Any]], trials: Sequence[str]
) -> None:
    """Adds what a part gives to the values of each run. Its session, and so its weights, are gone before the next's."""
    session = _session(path, model)
    reads = [one.name for one in session.get_inputs()]  # an input that nothing reads may not be among them
    for known, trial in zip(values, trials, strict=True):
        try:
            found = session.run(part.gives, {name: known[name] for name in reads})
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise ExportError(f"the exported graph fails at {trial}: {error}") from error
        known.update(zip(part.gives, found, strict=True))
        for name in known.keys() - part.read_later:
            del known[name]


def _session(path: Path, model: Path | bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    options.enable_cpu_mem_arena = False  # it grows in powers of two
    try:
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        raise ExportError(f"{path.name} is refused by ONNX Runtime {ort.__version__}: {error}") from error


def _error(name: str, trial: str, ours: npt.NDArray[Any], theirs: npt.NDArray[Any], limit: float) -> float:
    if ours.shape != theirs.shape:
        raise ExportError(f"{name} at {trial}: shape must be {theirs.shape} as in torch, got {ours.shape}")
    for source, values in (("the module", theirs), ("the exported graph", ours)):
        if not np.isfinite(values).all():
            bad = int(np.count_nonzero(~np.isfinite(values)))
            raise ExportError(f"{name} at {trial}: every number must be finite, got {bad} from {source} that are not")
    scale = float(np.abs(theirs).max(initial=0.0)) or 1.0
    error = float(np.abs(ours.astype(np.float64) - theirs).max(initial=0.0)) / scale
    if error > limit:
        raise ExportError(
            f"{name} at {trial}: error must be at most {limit:g} of the largest magnitude, got {error:.3g}:"
            " nothing is written; pass tolerance= if that is near enough"
        )
    return error
