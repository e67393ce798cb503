"""The cost of a network in floating-point operations, counted in its ONNX graph without running it."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from stepfuse.extras import pip_install

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

Shape = tuple[int, ...]

# Not counted: they compute a few operations an element where a convolution computes thousands, or only move data.
_LEFT_OUT = """
    Abs Add AveragePool BatchNormalization Cast Ceil Clip Concat Constant ConstantOfShape Cos DepthToSpace Div Dropout
    Elu Equal Erf Exp Expand Flatten Floor Gather GatherElements GatherND Gelu GlobalAveragePool GlobalMaxPool Greater
    GreaterOrEqual GroupNormalization HardSigmoid HardSwish Identity InstanceNormalization LayerNormalization LeakyRelu
    Less LessOrEqual Log LogSoftmax Max MaxPool Mean Min Mish Mod Mul Neg Not Or And PRelu Pad Pow RMSNormalization
    Range Reciprocal ReduceL2 ReduceMax ReduceMean ReduceMin ReduceSum ReduceSumSquare Relu Reshape Resize Round
    ScatterND Shape Sigmoid Sign Sin Size Slice Softmax Softplus SpaceToDepth Split Sqrt Squeeze Sub Sum Swish Tanh Tile
    Transpose Trilu Unsqueeze Where
    """


def flops_of(path: str | os.PathLike[str], row_shapes: Mapping[str, Sequence[int]] | None = None) -> int:
    """Floating-point operations of one row of one pass of a network.

    Convolutions (transposed ones too) and matrix products are counted, two operations a multiply-add, as
    ``torch.utils.flop_counter`` does. Biases and everything that computes a few operations an element are left out:
    activations, normalisation, softmax, pooling, sums. An operator that is in neither list is refused, so that no
    expensive one is missed.

    Args:
        path: An ONNX file. The first dimension of every input is the row; it must be dynamic or 1.
        row_shapes: Shapes, without the row, of inputs whose other dimensions the file leaves open.

    Returns:
        The count, the same for every row of a batch.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If the file is no ONNX model, has an operator in neither list or a fixed number of rows, leaves a
            shape open, or has no input that ``row_shapes`` names, or one of another number of dimensions.
        ImportError: If onnx is not installed.

    Examples:
        >>> from stepfuse.analysis import flops_of
        >>> flops_of(sf.Bundle.load("fashion").denoiser) > 1e6
        True
    """
    model = _read(path)
    for node in model.graph.node:
        if node.domain not in ("", "ai.onnx") or node.op_type not in {*_COUNTED, *_LEFT_OUT.split()}:
            operator = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
            raise ValueError(f"every operator must be {', '.join(_COUNTED)} or one that costs little, got {operator}")
    _set_rows(model.graph, {name: tuple(shape) for name, shape in (row_shapes or {}).items()})
    shapes = _shapes(model)
    counted = [node for node in model.graph.node if node.op_type in _COUNTED]
    return sum(_COUNTED[node.op_type](node, partial(_known, shapes, node)) for node in counted)


def _conv(node: NodeProto, shape: Callable[[str], Shape]) -> int:
    return 2 * math.prod(shape(node.output[0])) * math.prod(shape(node.input[1])[1:])


def _conv_transpose(node: NodeProto, shape: Callable[[str], Shape]) -> int:
    return 2 * math.prod(shape(node.input[0])) * math.prod(shape(node.input[1])[1:])


def _gemm(node: NodeProto, shape: Callable[[str], Shape]) -> int:
    transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return 2 * math.prod(shape(node.output[0])) * shape(node.input[0])[0 if transposed else 1]


def _matmul(node: NodeProto, shape: Callable[[str], Shape]) -> int:
    return 2 * math.prod(shape(node.output[0])) * shape(node.input[0])[-1]


_COUNTED = {"Conv": _conv, "ConvTranspose": _conv_transpose, "Gemm": _gemm, "MatMul": _matmul}


def _read(path: str | os.PathLike[str]) -> ModelProto:
    try:
        import onnx
    except ImportError as error:
        raise ImportError(f"counting FLOPs needs onnx: {pip_install('analysis')}") from error
    try:  # weights that lie in other files are not needed, only their shapes
        return onnx.load(os.fspath(path), load_external_data=False)
    except OSError:
        raise
    except Exception as error:  # a protobuf error, which onnx does not export
        raise ValueError(f"{os.fspath(path)} must be an ONNX model: {error}") from error


def _set_rows(graph: GraphProto, row_shapes: Mapping[str, Shape]) -> None:
    """Fixes every input's shape to one row."""
    constants = {tensor.name for tensor in graph.initializer}
    inputs = {node.name: node for node in graph.input if node.name not in constants}
    if unknown := sorted(set(row_shapes) - set(inputs)):
        raise ValueError(f"row_shapes must name inputs of the network ({', '.join(inputs)}), got {', '.join(unknown)}")
    for name, node in inputs.items():
        sizes = node.type.tensor_type.shape.dim
        if not sizes or sizes[0].dim_value > 1:
            raise ValueError(f"the first dimension of input {name} must be dynamic or 1, got {_written(sizes)}")
        if name in row_shapes and len(row_shapes[name]) != len(sizes) - 1:
            raise ValueError(
                f"row_shapes[{name!r}] must give {len(sizes) - 1} sizes beside the row, got {row_shapes[name]}"
            )
        row = row_shapes.get(name, tuple(size.dim_value for size in sizes[1:]))
        if any(size < 1 for size in row):
            raise ValueError(f"every dimension of input {name} but the first must be fixed, got {_written(sizes)}")
        for size, fixed in zip(sizes, (1, *row), strict=True):
            size.dim_value = fixed
    del graph.value_info[:]  # the file's intermediate shapes are of any number of rows


def _shapes(model: ModelProto) -> dict[str, Shape | None]:
    """Shapes of all constants, inputs and intermediate values, None where they cannot be inferred."""
    import onnx.shape_inference

    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    try:
        graph = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    except onnx.shape_inference.InferenceError as error:
        raise ValueError(f"the network's shapes must follow from those of its inputs: {error}") from error
    shapes: dict[str, Shape | None] = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        sizes = value.type.tensor_type.shape.dim
        has_all = value.type.tensor_type.HasField("shape") and all(size.HasField("dim_value") for size in sizes)
        shapes[value.name] = tuple(size.dim_value for size in sizes) if has_all else None
    return shapes


def _known(shapes: Mapping[str, Shape | None], node: NodeProto, name: str) -> Shape:
    shape = shapes.get(name)
    if shape is None:
        raise ValueError(f"every shape must follow from those of the inputs, but {name} of a {node.op_type} is open")
    return shape


def _written(sizes: Any) -> list[str | int]:
    return [size.dim_param or size.dim_value or "?" for size in sizes]
