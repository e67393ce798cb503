"""Float16 graphs: weights and arithmetic in float16, except where its precision or range is too small."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection

import numpy as np

from stepfuse.errors import ExportError
from stepfuse.extras import pip_install

try:
    import onnx_ir as ir
except ImportError as error:
    raise ImportError(f"exporting needs onnx ({error}): {pip_install('export')}") from error

PRECISIONS = ("float32", "float16")

#: Statistics over many values, exponentials, roots and phases.
FLOAT32_OPERATORS = frozenset(
    [
        *("Exp", "Log", "Pow", "Reciprocal", "Sqrt", "Softmax", "LogSoftmax", "Sin", "Cos", "CumSum", "Range"),
        *("ReduceL2", "ReduceLogSumExp", "ReduceMean", "ReduceProd", "ReduceSum", "ReduceSumSquare"),
        *(
            "BatchNormalization",
            "GroupNormalization",
            "InstanceNormalization",
            "LayerNormalization",
            "RMSNormalization",
        ),
    ]
)

_PHASES = ("Sin", "Cos")
_FLOAT32_INPUTS = {("Resize", 1), ("Resize", 2)}  # its region and scales
_TYPE_ATTRIBUTES = {"Cast": "to", "EyeLike": "dtype"}
_LARGEST = float(np.finfo(np.float16).max)


def to_float16(model: ir.Model, float32_operators: Collection[str] = FLOAT32_OPERATORS) -> dict[str, int]:
    """Turns the float32 values of a graph into float16, in place; its inputs and outputs stay float32.

    Between casts, these stay float32: the operators named; those that compute the argument of a sine or cosine, since
    float16 rounds a timestep of 999 to half a radian; squares; and an operator between two of these.

    Args:
        model: The model; the type of every value must be known.
        float32_operators: Operators that stay float32.

    Returns:
        How often each operator stayed float32.

    Raises:
        ExportError: If the graph has branches or loops, or a value of unknown type.
    """
    graph = model.graph
    nodes = list(graph)
    _check(nodes)
    floats = {value for node in nodes for value in (*node.inputs, *node.outputs) if _is_float(value)}
    kept = _kept(nodes, floats, float32_operators)
    for value in graph.initializers.values():
        if value in floats and not any(
            node in kept or (node.op_type, at) in _FLOAT32_INPUTS for node, at in value.uses()
        ):
            _halve(value)
    for node in nodes:
        if node not in kept:
            for value in node.outputs:
                if value in floats:
                    value.dtype = ir.DataType.FLOAT16
            _retype(node)
    _cast_inputs(graph, nodes, floats, kept)
    _cast_outputs(graph, floats)
    _guard_transposes(graph)
    return dict(sorted(Counter(node.op_type for node in kept).items()))


def _check(nodes: list[ir.Node]) -> None:
    for node in nodes:
        if any(
            attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
            for attribute in node.attributes.values()
        ):
            raise ExportError(f"a float16 graph must have no branches or loops, got {node.op_type}: use float32")
        if unknown := [value.name for value in node.outputs if value.dtype is None]:
            raise ExportError(f"{node.op_type} {node.name} must have outputs of known type, got {unknown}: use float32")


def _is_float(value: ir.Value | None) -> bool:
    return value is not None and value.dtype == ir.DataType.FLOAT


def _kept(nodes: list[ir.Node], floats: set[ir.Value | None], operators: Collection[str]) -> set[ir.Node]:
    kept = {
        node
        for node in nodes
        if (node.op_type in operators or _is_square(node))
        and any(value in floats for value in (*node.inputs, *node.outputs))
    }
    phases = [node for node in kept if node.op_type in _PHASES]
    while phases:
        for value in phases.pop().inputs:
            if value in floats and value is not None and (above := value.producer()) is not None and above not in kept:
                kept.add(above)
                phases.append(above)
    between = [
        node for node in nodes if _reads_only(node, floats, kept) and any(below in kept for below in node.successors())
    ]
    return kept.union(between)


def _reads_only(node: ir.Node, floats: set[ir.Value | None], kept: set[ir.Node]) -> bool:
    """Whether all floats that a node computes with come from nodes that are kept."""
    above = [value.producer() for value in node.inputs if value is not None and value in floats]
    return any(above) and all(one is None or one in kept for one in above)


def _is_square(node: ir.Node) -> bool:
    return node.op_type == "Mul" and node.inputs[0] is node.inputs[1]


def _halve(value: ir.Value) -> None:
    """Float16 values, computed when the file is written. Finite ones are clamped to float16's range; infinity stays."""
    tensor = value.const_value
    if tensor is None:
        raise ExportError(f"{value.name} must have a value to become float16")

    def rounded() -> ir.TensorProtocol:
        array = tensor.numpy()
        with np.errstate(over="ignore"):
            half = np.where(np.isfinite(array), np.clip(array, -_LARGEST, _LARGEST), array).astype(np.float16)
        return ir.tensor(half)

    read: Callable[[], ir.TensorProtocol] = rounded
    value.const_value = ir.LazyTensor(
        read, dtype=ir.DataType.FLOAT16, shape=ir.Shape(tensor.shape.numpy()), name=value.name
    )
    value.dtype = ir.DataType.FLOAT16


def _retype(node: ir.Node) -> None:
    """Changes the attributes by which an operator's output is float32."""
    name = _TYPE_ATTRIBUTES.get(node.op_type)
    if name is not None and name in node.attributes and node.attributes[name].as_int() == ir.DataType.FLOAT:
        node.attributes[name] = ir.AttrInt64(name, int(ir.DataType.FLOAT16))
    if node.op_type == "ConstantOfShape":
        fill = node.attributes["value"].as_tensor().numpy() if "value" in node.attributes else np.zeros(1, np.float32)
        if fill.dtype == np.float32:
            node.attributes["value"] = ir.AttrTensor("value", ir.tensor(fill.astype(np.float16)))


def _cast_inputs(graph: ir.Graph, nodes: list[ir.Node], floats: set[ir.Value | None], kept: set[ir.Node]) -> None:
    casts: dict[ir.Value, ir.Value] = {}
    for node in nodes:
        for at, value in enumerate(node.inputs):
            if value is None or value not in floats:
                continue
            wide = node in kept or (node.op_type, at) in _FLOAT32_INPUTS
            wanted = ir.DataType.FLOAT if wide else ir.DataType.FLOAT16
            if value.dtype != wanted:
                if value not in casts:
                    casts[value] = _cast(graph, value, wanted, nodes[0])
                node.replace_input_with(at, casts[value])


def _cast_outputs(graph: ir.Graph, floats: set[ir.Value | None]) -> None:
    for at, value in enumerate(graph.outputs):
        if value in floats and value.dtype == ir.DataType.FLOAT16:
            name, value.name = value.name, f"{value.name}_float16"
            graph.outputs[at] = _cast(graph, value, ir.DataType.FLOAT, None)
            graph.outputs[at].name = name


def _cast(graph: ir.Graph, value: ir.Value, dtype: ir.DataType, first: ir.Node | None) -> ir.Value:
    node = ir.node("Cast", [value], attributes={"to": int(dtype)})
    node.outputs[0].name = f"{value.name}_{dtype.name.lower()}"
    node.outputs[0].dtype, node.outputs[0].shape = dtype, value.shape
    producer = value.producer()
    if producer is not None:
        graph.insert_after(producer, node)
    elif first is not None:
        graph.insert_before(first, node)
    else:
        graph.append(node)
    return node.outputs[0]


def _guard_transposes(graph: ir.Graph) -> None:
    """Inserts an identity reshape after each transpose that moves the first axis to before the last.

    ONNX Runtime, from 1.24 or before to 1.31, folds such a transpose into a float16 product and then crashes:
    https://github.com/microsoft/onnxruntime/issues/28392.
    """
    for node in list(graph):
        if node.op_type != "Transpose" or node.outputs[0].dtype != ir.DataType.FLOAT16:
            continue
        perm = list(node.attributes["perm"].as_ints())
        if len(perm) < 3 or perm != [*range(1, len(perm) - 1), 0, len(perm) - 1]:
            continue
        same = ir.tensor(np.zeros(len(perm), np.int64), name=f"{node.outputs[0].name}_same")
        shape = ir.Value(
            name=same.name, const_value=same, type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([len(perm)])
        )
        graph.register_initializer(shape)
        guard = ir.node("Reshape", [node.outputs[0], shape])
        guard.outputs[0].name, guard.outputs[0].dtype = f"{node.outputs[0].name}_guarded", ir.DataType.FLOAT16
        node.outputs[0].replace_all_uses_with(guard.outputs[0])
        guard.replace_input_with(0, node.outputs[0])
        graph.insert_after(node, guard)
