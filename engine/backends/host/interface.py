"""What a network's file must take and give to be that of its manifest, whichever library has read it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from stepfuse.bundle.model_info import ModelInfo
from stepfuse.errors import BundleError

SAMPLE, TIMESTEP, PREDICTION = "sample", "timestep", "prediction"


class Row(NamedTuple):
    """One row of a network's input or output."""

    dtype: str
    shape: tuple[int, ...]


class Node(NamedTuple):
    """An input or output as a library reports it: its dtype by numpy's name, and its sizes, None where dynamic."""

    dtype: str
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        sizes = ["?" if size is None else str(size) for size in self.shape]
        return f"{self.dtype} ({', '.join(sizes)})"


def input_rows(info: ModelInfo) -> dict[str, Row]:
    """A row of each input, by name."""
    rows = {SAMPLE: Row("float32", info.shape), TIMESTEP: Row(info.timestep_dtype, ())}
    return rows | {name: Row(spec.dtype, spec.shape) for name, spec in info.cond.items()}


def check_interface(
    model: Path,
    inputs: Mapping[str, Node],
    outputs: Mapping[str, Node],
    rows: Mapping[str, Row],
    prediction: Row,
) -> None:
    """Checks that a network takes and gives what is said of it.

    Args:
        model: Its file, for messages.
        inputs: Its inputs by name.
        outputs: Its outputs by name.
        rows: What a row of each input must be.
        prediction: What a row of its output must be.

    Raises:
        BundleError: If it does not.
    """
    if set(inputs) != set(rows):
        raise BundleError(f"{model}: inputs must be {', '.join(rows)}, got {', '.join(inputs)}")
    for name, row in rows.items():
        _check_node(model, name, inputs[name], row)
    if PREDICTION not in outputs:
        raise BundleError(f"{model}: must have an output {PREDICTION}, got {', '.join(outputs)}")
    _check_node(model, PREDICTION, outputs[PREDICTION], prediction)


def _check_node(model: Path, name: str, node: Node, row: Row) -> None:
    if node.dtype != row.dtype:
        raise BundleError(f"{model}: {name} must be {row.dtype}, got {node}")
    if not node.shape or node.shape[0] is not None:
        raise BundleError(f"{model}: the first dimension of {name} must be dynamic, got {node}")
    sizes = node.shape[1:]
    fits = len(sizes) == len(row.shape) and all(a in (b, None) for a, b in zip(sizes, row.shape, strict=True))
    if not fits:
        raise BundleError(f"{model}: a row of {name} must have shape {row.shape}, got {node}")
