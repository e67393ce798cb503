"""A network's graph with an input pair of factors for every weight that a LoRA may change.

A layer ``y = x W`` becomes ``y = x W + (x down) up``, where ``down`` and ``up`` are inputs of any rank. Weights stay
constants, which ONNX Runtime lays out for its kernels once, and no set of LoRAs takes memory for changed weights.

The graph is rewritten as bytes: a layer's node writes to another name, three nodes are added behind it, and all else is
copied as it is. Field numbers are those of onnx.proto.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from stepfuse.bundle.onnx_file import OnnxFile
from stepfuse.bundle.transposed import transposed_weights
from stepfuse.bundle.wire import FIXED32, VARINT, Bytes, fields, varint, written, written_key
from stepfuse.errors import LoraError
from stepfuse.lora.match import sizes_of

FACTOR = "lora/"  # what names of the inputs begin with
_MODEL_GRAPH, _MODEL_METADATA = 7, 14
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_INPUT = 1, 5, 11
_NODE_INPUT, _NODE_OUTPUT, _NODE_OPERATOR, _NODE_ATTRIBUTE, _NODE_DOMAIN = 1, 2, 4, 5, 7
_ATTRIBUTE_NAME, _ATTRIBUTE_FLOAT, _ATTRIBUTE_INT, _ATTRIBUTE_GRAPH, _ATTRIBUTE_INTS, _ATTRIBUTE_GRAPHS = (
    *(1, 2, 3),
    *(6, 8, 11),
)
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_NAME = 1, 2, 8
_ANY = -1  # a size that the graph leaves open
_ELEMENTS = {1: "float32", 10: "float16"}  # TensorProto.DataType


@dataclass(frozen=True)
class AdaptableWeight:
    """A weight, and whether its layers take factors.

    Attributes:
        model: The ONNX file.
        name: The initializer.
        shape: Its shape in the graph.
        transposed: Whether it is a matrix that the graph holds as (in, out).
        layer: ``MatMul``, or ``Conv``, whose weight is (out, in, height, width); empty: factors cannot be added to all
            that reads it.
        dtype: ``float32`` or ``float16``: of the factors, as of what the layer computes in.
    """

    model: str
    name: str
    shape: tuple[int, ...]
    transposed: bool
    layer: str
    dtype: str

    @property
    def key(self) -> tuple[str, str]:
        """ONNX file and initializer."""
        return self.model, self.name

    @property
    def sizes(self) -> tuple[int, ...]:
        """As ``Pair.sizes``."""
        return sizes_of(self.shape, transposed=self.transposed)

    @property
    def down(self) -> str:
        """The input for the first factor: (in, rank), or (rank, in, height, width) of a convolution."""
        return f"{FACTOR}down/{self.name}"

    @property
    def up(self) -> str:
        """The input for the second factor: (rank, out), or (out, rank, 1, 1) of a convolution."""
        return f"{FACTOR}up/{self.name}"

    def down_shape(self, rank: int) -> tuple[int, ...]:
        """Shape of the first factor."""
        return (rank, *self.shape[1:]) if self.layer == "Conv" else (self.sizes[1], rank)

    def up_shape(self, rank: int) -> tuple[int, ...]:
        """Shape of the second factor."""
        return (self.shape[0], rank, 1, 1) if self.layer == "Conv" else (rank, self.sizes[0])


@dataclass(frozen=True)
class AdaptableGraph:
    """A graph with inputs for factors.

    Attributes:
        content: The ONNX model; external data are those of the file that it was made from.
        weights: All matrices and convolutions' weights; those with a ``layer`` have inputs.
    """

    content: bytes
    weights: Sequence[AdaptableWeight]


def adaptable(onnx: OnnxFile) -> AdaptableGraph:
    """The graph of a file, with inputs for factors.

    Raises:
        LoraError: If it does not say which weights it holds transposed, or has branches or loops.
    """
    try:
        graph = _Graph.read(onnx.file.mapped())
        weights = graph.weights(onnx.path.name)
        content = graph.rewritten({one.name: one for one in weights if one.layer})
    except (ValueError, IndexError, struct.error) as error:
        raise LoraError(f"{onnx.path} takes no LoRA while it runs: {error}") from error
    return AdaptableGraph(content, weights)


@dataclass
class _Node:
    """A node: where it lies, its field's key from ``begin`` on; what it reads and writes; where its attributes lie."""

    begin: int
    start: int
    end: int
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    operator: str = ""
    domain: str = ""
    attributes: dict[str, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Use:
    """A weight as a node reads it."""

    name: str
    turned: bool  # transposed, beyond how it is stored
    element: int  # TensorProto.DataType


@dataclass
class _Graph:
    """A model's graph as far as weights are concerned: shapes and types of initializers by name, and the nodes."""

    data: Bytes
    begin: int = 0
    start: int = 0
    end: int = 0
    metadata: dict[str, str] = field(default_factory=dict)
    tensors: dict[str, tuple[tuple[int, ...], int]] = field(default_factory=dict)
    nodes: list[_Node] = field(default_factory=list)

    @classmethod
    def read(cls, data: Bytes) -> _Graph:
        found, before = cls(data), 0
        for number, _, start, end in fields(data, 0, len(data)):
            if number == _MODEL_METADATA:
                key, value = _texts(data, start, end, (1, 2))
                found.metadata[key] = value
            elif number == _MODEL_GRAPH:
                if found.end:
                    raise ValueError("it must have one graph")
                found.begin, found.start, found.end = before, start, end
                found._read_graph()
            before = end
        return found

    def _read_graph(self) -> None:
        before = self.start
        for number, _, start, end in fields(self.data, self.start, self.end):
            if number == _GRAPH_NODE:
                self.nodes.append(self._node(_Node(before, start, end)))
            elif number == _GRAPH_INITIALIZER:
                name, shape, element = _tensor(self.data, start, end)
                if element in _ELEMENTS and len(shape) >= 2 and name.endswith(".weight"):
                    self.tensors[name] = shape, element
            before = end

    def _node(self, node: _Node) -> _Node:
        for number, _, at, stop in fields(self.data, node.start, node.end):
            if number == _NODE_INPUT:
                node.inputs.append(_text(self.data, at, stop))
            elif number == _NODE_OUTPUT:
                node.outputs.append(_text(self.data, at, stop))
            elif number == _NODE_OPERATOR:
                node.operator = _text(self.data, at, stop)
            elif number == _NODE_DOMAIN:
                node.domain = _text(self.data, at, stop)
            elif number == _NODE_ATTRIBUTE:
                inner = {one for one, *_ in fields(self.data, at, stop)}
                if inner & {_ATTRIBUTE_GRAPH, _ATTRIBUTE_GRAPHS}:
                    raise ValueError("it must have no branches or loops")
                [name] = _texts(self.data, at, stop, (_ATTRIBUTE_NAME,))
                node.attributes[name] = at, stop
        return node

    def weights(self, model: str) -> list[AdaptableWeight]:
        """All weights; factors can be added where all that reads one are layers, of one type of numbers."""
        transposed = transposed_weights(self.metadata)
        layers: dict[str, set[tuple[str, int]]] = defaultdict(set)
        for node, index, use in self._uses():
            rank = len(self.tensors[use.name][0])
            layer = self._layer(node) if index == 1 else ""
            # A matrix product reads (in, out): a matrix that is stored as torch has it, (out, in), has to be turned.
            is_product = layer == "MatMul" and rank == 2 and use.turned != (use.name in transposed)
            layers[use.name].add((layer if is_product or (layer == "Conv" and rank == 4) else "", use.element))
        found = []
        for name, (shape, element) in self.tensors.items():
            layer, element = next(iter(layers[name])) if len(layers[name]) == 1 else ("", element)
            found.append(AdaptableWeight(model, name, shape, name in transposed, layer, _ELEMENTS[element]))
        return found

    def _uses(self) -> Iterator[tuple[_Node, int, _Use]]:
        """Where weights are read, behind casts and transposes: node, place among its inputs, and how."""
        known = {name: _Use(name, False, element) for name, (_, element) in self.tensors.items()}
        for node in self.nodes:  # in an order in which each is behind what it reads
            for index, name in enumerate(node.inputs):
                if (use := known.get(name)) is None:
                    continue
                if node.domain == "" and node.operator == "Cast" and (element := self._int(node, "to")) in _ELEMENTS:
                    known[node.outputs[0]] = _Use(use.name, use.turned, element)
                elif node.domain == "" and node.operator == "Transpose" and self._ints(node, "perm") == [1, 0]:
                    known[node.outputs[0]] = _Use(use.name, not use.turned, use.element)
                else:
                    yield node, index, self._turned_by(node, use)

    def _turned_by(self, node: _Node, use: _Use) -> _Use:
        """The use of a ``Gemm``, which may transpose the matrix itself."""
        turns = node.operator == "Gemm" and self._int(node, "transB") == 1
        return _Use(use.name, use.turned != turns, use.element)

    def _layer(self, node: _Node) -> str:
        """``MatMul`` or ``Conv`` for a node that computes one of the two; empty for others."""
        if node.domain:
            return ""
        if node.operator == "Conv":
            return "Conv" if self._int(node, "group") in (None, 1) else ""
        if node.operator == "Gemm":
            plain = self._float(node, "alpha") in (None, 1.0) and self._int(node, "transA") in (None, 0)
            return "MatMul" if plain else ""
        return "MatMul" if node.operator == "MatMul" else ""

    def _int(self, node: _Node, name: str) -> int | None:
        return next(iter(self._ints(node, name)), None)

    def _ints(self, node: _Node, name: str) -> list[int]:
        found: list[int] = []
        for number, wire, at, stop in self._attribute(node, name):
            if number == _ATTRIBUTE_INT or (number == _ATTRIBUTE_INTS and wire == VARINT):
                found.append(varint(self.data, at, stop)[0])
            elif number == _ATTRIBUTE_INTS:
                found += _packed(self.data, at, stop)
        return found

    def _float(self, node: _Node, name: str) -> float | None:
        for number, wire, at, stop in self._attribute(node, name):
            if number == _ATTRIBUTE_FLOAT and wire == FIXED32:
                return float(struct.unpack("<f", self.data[at:stop])[0])
        return None

    def _attribute(self, node: _Node, name: str) -> Iterator[tuple[int, int, int, int]]:
        return fields(self.data, *node.attributes[name]) if name in node.attributes else iter(())

    def rewritten(self, weights: Mapping[str, AdaptableWeight]) -> bytes:
        """The model with inputs for the factors of these weights."""
        data = memoryview(self.data)  # what is copied, weights among it, is copied once
        parts: list[bytes | memoryview] = []
        at = self.start
        for node, _, use in self._uses():
            if use.name in weights:
                parts += [data[at : node.begin], *self._with_factors(node, weights[use.name])]
                at = node.end
        parts.append(data[at : self.end])
        for weight in weights.values():
            element = next(key for key, name in _ELEMENTS.items() if name == weight.dtype)
            for name, shape in ((weight.down, weight.down_shape(_ANY)), (weight.up, weight.up_shape(_ANY))):
                parts.append(written(_GRAPH_INPUT, _value_info(name, element, shape)))
        key = written_key(_MODEL_GRAPH, sum(map(len, parts)))
        return b"".join((data[: self.begin], key, *parts, data[self.end :]))

    def _with_factors(self, node: _Node, weight: AdaptableWeight) -> list[bytes]:
        """The node, and behind it those that add the product of the factors to what it computes."""
        output = node.outputs[0]
        base, low, delta = (f"{FACTOR}{kind}/{output}" for kind in ("base", "low", "delta"))
        kept = [
            written(number, base if number == _NODE_OUTPUT else self.data[at:stop])
            for number, _, at, stop in fields(self.data, node.start, node.end)
        ]
        attributes = [self.data[at:stop] for at, stop in node.attributes.values()] if weight.layer == "Conv" else []
        return [
            written(_GRAPH_NODE, b"".join(kept)),
            _new_node(weight.layer, [node.inputs[0], weight.down], low, attributes),
            _new_node(weight.layer, [low, weight.up], delta),
            _new_node("Add", [base, delta], output),
        ]


def _new_node(operator: str, inputs: list[str], output: str, attributes: list[bytes] | None = None) -> bytes:
    parts = [written(_NODE_INPUT, name) for name in inputs]
    parts += [written(_NODE_OUTPUT, output), written(_NODE_OPERATOR, operator)]
    parts += [written(_NODE_ATTRIBUTE, one) for one in attributes or ()]
    return written(_GRAPH_NODE, b"".join(parts))


def _value_info(name: str, element: int, shape: tuple[int, ...]) -> bytes:
    """A ``ValueInfoProto``."""
    dims = b"".join(written(1, b"" if size == _ANY else written(1, size)) for size in shape)
    tensor = written(1, element) + written(2, dims)
    return written(1, name) + written(2, written(1, tensor))


def _tensor(data: Bytes, start: int, end: int) -> tuple[str, tuple[int, ...], int]:
    """Name, shape and element type of a ``TensorProto``."""
    name, shape, element = "", list[int](), 0
    for number, _, at, stop in fields(data, start, end):
        if number == _TENSOR_DIMS:
            shape += _packed(data, at, stop)  # a dimension each, or all of them packed: both are varints in a row
        elif number == _TENSOR_TYPE:
            element = varint(data, at, stop)[0]
        elif number == _TENSOR_NAME:
            name = _text(data, at, stop)
    return name, tuple(shape), element


def _packed(data: Bytes, at: int, stop: int) -> list[int]:
    found = []
    while at < stop:
        value, at = varint(data, at, stop)
        found.append(value)
    return found


def _texts(data: Bytes, start: int, end: int, numbers: tuple[int, ...]) -> list[str]:
    found = {number: _text(data, at, stop) for number, _, at, stop in fields(data, start, end) if number in numbers}
    return [found.get(number, "") for number in numbers]


def _text(data: Bytes, start: int, end: int) -> str:
    return bytes(data[start:end]).decode()
