"""A torch module as an ONNX graph: ``torch.export`` captures it, torch's own exporter translates it.

Parameters keep the names that torch gives them, so that a LoRA or a refitted plan finds them again: nothing is folded
into them, and equal ones are not merged. Matrices that the graph would transpose before every use are stored
transposed; ``initializers.transposed_weights`` says which.
"""

from __future__ import annotations

import inspect
import json
import logging
import re
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from stepfuse.export.errors import ExportError
from stepfuse.export.initializers import TRANSPOSED
from stepfuse.export.onnx_file import write_onnx
from stepfuse.export.precision import FLOAT32_OPERATORS, PRECISIONS, to_float16

try:
    import onnx_ir as ir
    import torch
except ImportError as error:
    raise ImportError(f"exporting needs torch and onnx ({error}): pip install 'stepfuse[export]'") from error

if TYPE_CHECKING:
    import os

OPSETS = (18, 23)

_SIZE = re.compile(r"(?:([1-9]\d*)\*)?([A-Za-z_]\w*)")
_LOUD = ("torch.onnx", "torch.export", "torch._dynamo", "torch.fx", "onnxscript", "onnx_ir")


@dataclass(frozen=True)
class Input:
    """One input of a network, a row at a time.

    Attributes:
        name: Its name in the graph.
        shape: Shape of one row: numbers, and names of sizes that a run may choose, such as ``"height"``, or
            ``"8*height"`` for a multiple of it.
        dtype: ``float32``, ``float16``, ``int64``, ``int32`` or ``bool``.
        low: Least value that it is tried with.
        high: Values that it is tried with are below this: the number of classes or of tokens. Without it, floats are
            standard normal, and integers 0 or 1.
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: str = "float32"
    low: float = field(default=0, kw_only=True)
    high: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        for size in self.shape:
            if not (_SIZE.fullmatch(size) if isinstance(size, str) else size >= 1):
                raise ValueError(f"{self.name}: a size must be at least 1, a name or '8*name', got {size!r}")

    def row_shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape of one row where the named sizes have these values."""
        return tuple(size if isinstance(size, int) else _value(size, sizes) for size in self.shape)

    def example(self, rows: int, sizes: Mapping[str, int], rng: np.random.Generator) -> npt.NDArray[Any]:
        """Random values of shape (rows, ...) that the network may be given."""
        shape = (rows, *self.row_shape(sizes))
        if not self.dtype.startswith("float"):
            return rng.integers(int(self.low), 2 if self.high is None else int(self.high), shape).astype(self.dtype)
        values = rng.standard_normal(shape) if self.high is None else rng.uniform(self.low, self.high, shape)
        return values.astype(self.dtype)


@dataclass(frozen=True)
class Report:
    """What was written.

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
        float32_operators: What stays float32 in a float16 graph, beside what a sine or cosine is taken of.
        external: Whether weights lie in a file of their own; None: where they must, from 2 GB on.
        prefix: Taken off the front of parameters' names: that of a module inside ``module``.

    Raises:
        ExportError: If the module cannot be captured or translated, or the disk is too small.
        ValueError: If an argument is out of bounds.
    """
    if not OPSETS[0] <= opset <= OPSETS[1]:
        raise ValueError(f"opset must be between {OPSETS[0]} and {OPSETS[1]}, got {opset}")
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    model = _translate(module, inputs, outputs, first_sizes(sizes), opset)
    _name_sizes(model, inputs, outputs)
    transposed = _transpose_weights(model)
    _simplify(model)
    kept = to_float16(model, float32_operators) if precision == "float16" else {}
    model.metadata_props[TRANSPOSED] = json.dumps(sorted(_drop_prefix(model, transposed, prefix)))
    files, weight_bytes = write_onnx(model, Path(path), external)
    return Report({file.name: file for file in files}, opset, precision, kept, weight_bytes)


def first_sizes(sizes: Mapping[str, Sequence[int]] | None) -> dict[str, int]:
    """The first value of each named size."""
    return {name: values[0] for name, values in (sizes or {}).items()}


@contextmanager
def evaluating(module: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; each part of the module is then as it was."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part in training:
            part.training = True


def _value(size: str, sizes: Mapping[str, int]) -> int:
    match = _SIZE.fullmatch(size)
    if match is None or match[2] not in sizes:
        raise ValueError(f"sizes must give values for {size!r}, got {', '.join(sizes) or 'nothing'}")
    return int(match[1] or 1) * sizes[match[2]]


def _translate(
    module: torch.nn.Module, inputs: Sequence[Input], outputs: Sequence[str], sizes: Mapping[str, int], opset: int
) -> ir.Model:
    rng = np.random.default_rng(0)
    dims: dict[str, Any] = {}
    rows = torch.export.Dim.DYNAMIC  # without bounds: diffusers' UNets treat 64 rows and more in their own way
    shapes = tuple({0: rows, **_dynamic(one, dims)} for one in inputs)
    arguments = tuple(torch.from_numpy(one.example(3, sizes, rng)) for one in inputs)
    kind = module._get_name()  # what torch prints; a wrapper gives that of what it wraps
    with evaluating(module), _quiet():
        try:
            program = torch.export.export(
                module,
                arguments,
                dynamic_shapes=_nest(module, shapes),
                strict=False,
                prefer_deferred_runtime_asserts_over_guards=True,
            )
        except Exception as error:
            raise ExportError(
                f"{kind} cannot be captured by torch.export: {_first_line(error)}: a module must not branch on the"
                " values of tensors, fix the number of rows, or leave torch on the way: rewrite that part, or give a"
                " size that it fixes as a number"
            ) from error
        try:
            translated = torch.onnx.export(
                program,
                dynamo=True,
                optimize=False,
                verbose=False,
                opset_version=opset,
                input_names=[one.name for one in inputs],
                output_names=list(outputs),
            )
        except Exception as error:
            raise ExportError(
                f"{kind} cannot be translated to ONNX operator set {opset}: {_first_line(error)}: try a later opset,"
                " or write that part with other operators"
            ) from error
    model: ir.Model = translated.model
    if len(model.graph.outputs) != len(outputs):
        raise ExportError(f"{kind} must return {', '.join(outputs)}, got {len(model.graph.outputs)} outputs")
    _name_shared(model, module)
    return model


def _dynamic(one: Input, dims: dict[str, Any]) -> dict[int, Any]:
    found: dict[int, Any] = {}
    for axis, size in enumerate(one.shape, start=1):
        if isinstance(size, str) and (match := _SIZE.fullmatch(size)):
            dim = dims.setdefault(match[2], torch.export.Dim(match[2]))
            found[axis] = int(match[1]) * dim if match[1] else dim
    return found


def _nest(module: torch.nn.Module, shapes: tuple[Any, ...]) -> Any:
    """``torch.export`` wants the shapes of ``*args`` as one tuple."""
    kinds = [parameter.kind for parameter in inspect.signature(module.forward).parameters.values()]
    return (shapes,) if kinds[:1] == [inspect.Parameter.VAR_POSITIONAL] else shapes


def _name_shared(model: ir.Model, module: torch.nn.Module) -> None:
    """Gives a parameter that has several names its first, where torch takes that of its use."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    for name, value in list(model.graph.initializers.items()):
        first = names.get(id(value.const_value.raw), name)
        if first not in model.graph.initializers:
            value.name = first


def _name_sizes(model: ir.Model, inputs: Sequence[Input], outputs: Sequence[str]) -> None:
    """Writes the names of sizes where torch has symbols of its own, and drops shapes of what lies between."""
    names: dict[str, str] = {}
    for value, one in zip(model.graph.inputs, inputs, strict=True):
        for dim, size in zip(value.shape or (), ("rows", *one.shape), strict=True):
            names[str(dim)] = str(size)
        value.shape = ir.Shape(["rows", *one.shape])
    for value, name in zip(model.graph.outputs, outputs, strict=True):
        value.name = name
        if value.shape is not None:
            value.shape = ir.Shape([dim if isinstance(dim, int) else names.get(str(dim)) for dim in value.shape])


def _transpose_weights(model: ir.Model) -> set[str]:
    """Matrices that are only used transposed are stored so, as a view that is read when the file is written."""
    found = set()
    for name, value in list(model.graph.initializers.items()):
        nodes = list(value.consumers())
        if not nodes or any(
            node.op_type != "Transpose" or list(node.attributes["perm"].as_ints()) != [1, 0] for node in nodes
        ):
            continue
        tensor = value.const_value
        value.const_value = ir.tensor_adapters.TorchTensor(tensor.raw.detach().T, name=name)
        value.shape = ir.Shape(list(reversed(tensor.shape)))
        for node in nodes:
            node.outputs[0].replace_all_uses_with(value)
            model.graph.remove(node, safe=True)
        found.add(name)
    return found


def _simplify(model: ir.Model) -> None:
    """Folds constants and removes what is not needed, without touching parameters: what has no value stays."""
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass
    from onnxscript import optimizer

    weights = {name: value.const_value for name, value in model.graph.initializers.items()}
    for value in model.graph.initializers.values():
        value.const_value = None
    with _quiet():
        optimizer.optimize_ir(model)
    ClearMetadataAndDocStringPass()(model)  # stack traces, with paths of this machine
    for name, tensor in weights.items():
        if name in model.graph.initializers:
            model.graph.initializers[name].const_value = tensor


def _drop_prefix(model: ir.Model, transposed: set[str], prefix: str) -> set[str]:
    """Shortens parameters' names, unless another value has the short one; gives those of ``transposed`` as they are."""
    weights = model.graph.initializers
    taken = {value.name for node in model.graph for value in node.outputs}
    taken.update(value.name for value in model.graph.inputs)
    taken.update(name for name in weights if not name.startswith(prefix))
    final = {}
    for name, value in list(weights.items()):
        short = name.removeprefix(prefix)
        final[name] = name if short in taken else short
        value.name = final[name]
    return {final[name] for name in transposed if name in final}


def _first_line(error: BaseException) -> str:
    """What went wrong first, in one line; torch wraps causes in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line for line in lines if line), type(error).__name__)


@contextmanager
def _quiet() -> Iterator[None]:
    levels = {name: logging.getLogger(name).level for name in _LOUD}
    try:
        for name in _LOUD:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
