"""A torch module as an ONNX graph: ``torch.export`` captures it, torch's own exporter translates it.

Parameters keep the names that torch gives them, so that a LoRA or a refitted plan finds them again: nothing is folded
into them, and equal ones are not merged. Matrices that the graph would transpose before every use are stored
transposed; ``stepfuse.bundle.transposed`` says which.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stepfuse.bundle.transposed import TRANSPOSED
from stepfuse.errors import ExportError
from stepfuse.export.onnx.inputs import Input as Input
from stepfuse.export.onnx.inputs import first_sizes
from stepfuse.export.onnx.onnx_file import write_onnx
from stepfuse.export.onnx.parameters import drop_prefix, name_shared, simplify, transpose_weights
from stepfuse.export.onnx.precision import FLOAT32_OPERATORS, PRECISIONS, to_float16
from stepfuse.export.onnx.translation import first_line, translate
from stepfuse.extras import pip_install

try:
    import torch
except ImportError as error:
    raise ImportError(f"exporting needs torch ({error}): {pip_install('export')}") from error

OPSETS = (18, 23)


@dataclass(frozen=True)
class Report:
    """What ``export_onnx`` has written.

    Attributes:
        files: The files by name: the graph, and its weights if they lie beside it.
        opset: Its operator set.
        precision: ``float32`` or ``float16``.
        float32_operators: Operators that stayed float32 in a float16 graph, with how often they occur.
        weight_bytes: Bytes of its weights.
    """

    files: Mapping[str, Path]
    opset: int
    precision: str
    float32_operators: Mapping[str, int]
    weight_bytes: int


def export_onnx(
    module: torch.nn.Module,
    path: str | os.PathLike[str],
    inputs: Sequence[Input],
    outputs: Sequence[str],
    *,
    sizes: Mapping[str, Sequence[int]] | None = None,
    opset: int = 18,
    precision: str = "float32",
    float32_operators: Collection[str] = FLOAT32_OPERATORS,
    external: bool | None = None,
    prefix: str = "",
) -> Report:
    """Writes a module as an ONNX file that takes any number of rows.

    The module is captured in evaluation mode, and is as it was afterwards. Weights are written one at a time: beyond
    the module itself no copy of them is held.

    Args:
        module: Called as ``module(*tensors)`` in the order of ``inputs``; returns a tensor, or a tuple of them in the
            order of ``outputs``, with a row for each row.
        path: The file to write, replaced if it is there. External weights go to ``NAME.onnx.data`` beside it.
        inputs: Its inputs.
        outputs: Names of its outputs.
        sizes: Values to try for each size that ``inputs`` name, at least 2; the graph is captured at the first.
        opset: ONNX operator set, 18 to 23.
        precision: ``float16`` makes weights and arithmetic float16; inputs and outputs stay as they are.
        float32_operators: Operators that stay float32 in a float16 graph, beside those that compute the arguments of
            sines and cosines.
        external: Whether weights lie in a file of their own; None: where they must, from 2 GB on.
        prefix: Taken off the front of parameters' names: that of a module inside ``module``.

    Raises:
        ExportError: If the module cannot be captured or translated, or the disk is too small.
        ValueError: If ``opset`` or ``precision`` is not supported, or ``sizes`` lacks a name that ``inputs`` have.
    """
    if not OPSETS[0] <= opset <= OPSETS[1]:
        raise ValueError(f"opset must be between {OPSETS[0]} and {OPSETS[1]}, got {opset}")
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    model = translate(module, inputs, outputs, first_sizes(sizes), opset)
    name_shared(model, module)
    transposed = transpose_weights(model)
    try:
        simplify(model)
    except Exception as error:  # whatever its passes raise on a graph that torch's exporter should not have made
        raise ExportError(f"{module._get_name()} cannot be simplified as an ONNX graph: {first_line(error)}") from error
    kept = to_float16(model, float32_operators) if precision == "float16" else {}
    model.metadata_props[TRANSPOSED] = json.dumps(sorted(drop_prefix(model, transposed, prefix)))
    files, weight_bytes = write_onnx(model, Path(path), external)
    return Report({file.name: file for file in files}, opset, precision, kept, weight_bytes)
