"""A torch module as an ONNX model in memory, whose weights are the module's own tensors."""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from stepfuse.errors import ExportError
from stepfuse.export.onnx.guards import recorded_guards, refuse_branches
from stepfuse.export.onnx.inputs import Input, split_size
from stepfuse.extras import pip_install

try:
    import onnx_ir as ir
    import torch
except ImportError as error:
    raise ImportError(f"exporting needs torch and onnx ({error}): {pip_install('export')}") from error

_LOUD = ("torch.onnx", "torch.export", "torch._dynamo", "torch.fx", "onnxscript", "onnx_ir")


def translate(
    module: torch.nn.Module, inputs: Sequence[Input], outputs: Sequence[str], sizes: Mapping[str, int], opset: int
) -> ir.Model:
    """Captures a module by ``torch.export`` and translates it, without simplifying anything.

    Args:
        module: Called as ``module(*tensors)``.
        inputs: Its inputs.
        outputs: Names of its outputs.
        sizes: The value of each named size to capture it at.
        opset: ONNX operator set.

    Raises:
        ExportError: If the module cannot be captured or translated, branches on the number of rows or a free size, or
            returns another number of outputs than are named; the message has the cause's first line.
    """
    rng = np.random.default_rng(0)
    dims: dict[str, Any] = {}
    rows = torch.export.Dim.DYNAMIC  # without bounds: diffusers' UNets treat 64 rows and more in their own way
    shapes = tuple({0: rows, **_dynamic(one, dims)} for one in inputs)
    arguments = tuple(torch.from_numpy(one.example(3, sizes, rng)) for one in inputs)
    kind = module._get_name()  # what torch prints; a wrapper gives that of what it wraps
    with evaluating(module), quiet(), recorded_guards() as guards:
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
                f"{kind} cannot be captured by torch.export: {first_line(error)}: a module must not branch on the"
                " values of tensors, fix the number of rows, or leave torch on the way: rewrite that part, or give a"
                " size that it fixes as a number"
            ) from error
        refuse_branches(kind, guards, program)
        _give_attention_heads(program)
        _drop_squeezes(program)
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
                f"{kind} cannot be translated to ONNX operator set {opset}: {first_line(error)}: try a later opset,"
                " or write that part with other operators"
            ) from error
    model: ir.Model = translated.model
    if len(model.graph.outputs) != len(outputs):
        raise ExportError(f"{kind} must return {', '.join(outputs)}, got {len(model.graph.outputs)} outputs")
    _name_sizes(model, inputs, outputs)
    return model


@contextmanager
def evaluating(module: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards each submodule is in the mode that it was in."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part in training:
            part.training = True


@contextmanager
def quiet() -> Iterator[None]:
    """Suppresses the exporters' warnings and logs."""
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


def _give_attention_heads(program: torch.export.ExportedProgram) -> None:
    """Adds an axis of heads, of size 1, to attention without one: torch's exporter requires four axes."""
    aten, graph = torch.ops.aten, program.graph
    for node in list(graph.nodes):
        if node.target is not aten.scaled_dot_product_attention.default or node.args[0].meta["val"].ndim != 3:
            continue
        with graph.inserting_before(node):
            node.args = tuple(
                graph.call_function(aten.unsqueeze.default, (one, 1))
                if isinstance(one, torch.fx.Node) and one.meta["val"].ndim == 3
                else one
                for one in node.args
            )
        with graph.inserting_after(node):
            flat = graph.call_function(aten.squeeze.dim, (node, 1))
        node.replace_all_uses_with(flat, lambda user, flat=flat: user is not flat)
    program.graph_module.recompile()


def _drop_squeezes(program: torch.export.ExportedProgram) -> None:
    """Removes squeezes of axes of a free size: in torch they do nothing, and ONNX's ``Squeeze`` refuses them."""
    for node in list(program.graph.nodes):
        if node.target is torch.ops.aten.squeeze.dim and not isinstance(
            node.args[0].meta["val"].shape[node.args[1]], int
        ):
            node.replace_all_uses_with(node.args[0])
            program.graph.erase_node(node)
    program.graph_module.recompile()


def _dynamic(one: Input, dims: dict[str, Any]) -> dict[int, Any]:
    found: dict[int, Any] = {}
    for axis, size in enumerate(one.shape, start=1):
        if isinstance(size, str):
            multiple, name = split_size(size)
            dim = dims.setdefault(name, torch.export.Dim(name, min=one.min_size, max=one.max_size))
            found[axis] = multiple * dim if multiple > 1 else dim
    return found


def _nest(module: torch.nn.Module, shapes: tuple[Any, ...]) -> Any:
    """``torch.export`` wants the shapes of ``*args`` as one tuple."""
    kinds = [parameter.kind for parameter in inspect.signature(module.forward).parameters.values()]
    return (shapes,) if kinds[:1] == [inspect.Parameter.VAR_POSITIONAL] else shapes


def _name_sizes(model: ir.Model, inputs: Sequence[Input], outputs: Sequence[str]) -> None:
    """Writes the names of sizes where torch has symbols of its own."""
    names: dict[str, str] = {}
    for value, one in zip(model.graph.inputs, inputs, strict=True):
        for dim, size in zip(value.shape or (), ("rows", *one.shape), strict=True):
            names[str(dim)] = str(size)
        value.shape = ir.Shape(["rows", *one.shape])
    for value, name in zip(model.graph.outputs, outputs, strict=True):
        value.name = name
        if value.shape is not None:
            value.shape = ir.Shape([dim if isinstance(dim, int) else names.get(str(dim)) for dim in value.shape])


def first_line(error: BaseException) -> str:
    """The root cause in one line; torch wraps causes in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    goes_on = lines[0].endswith(":") or any(line.startswith("- ") for line in lines[1:2])
    return " ".join(lines[:2]) if goes_on else lines[0]
