"""An ONNX file in parts that are run one after the other, so that memory holds the weights of one part at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepfuse.export.onnx.initializers import read_outline
from stepfuse.extras import pip_install

try:
    import onnx
    from onnx import external_data_helper, helper
except ImportError as error:
    raise ImportError(f"exporting needs onnx ({error}): {pip_install('export')}") from error


@dataclass(frozen=True)
class Part:
    """Operators of a graph that follow each other, as a graph of their own.

    Attributes:
        model: Its model, without inputs; weights lie in the file that it was read from, or beside it.
        known_inputs: Those inputs of the whole graph that it reads, with their shapes.
        reads: Names of the values that it reads: inputs of the whole graph, and outputs of the parts before.
        gives: Names of its outputs.
        read_later: Names of the values that later parts read, or that the whole graph returns.
    """

    model: onnx.ModelProto
    known_inputs: Mapping[str, onnx.ValueInfoProto]
    reads: tuple[str, ...]
    gives: tuple[str, ...]
    read_later: frozenset[str]

    def serialized(self, runs: Sequence[Mapping[str, Any]]) -> bytes:
        """The model with its inputs: where the whole graph says none, of the types and ranks that values have in a run.

        A dimension has the number that it has in all ``runs``, if that is one: of sizes that are computed, say, ONNX
        Runtime has to know how many there are.
        """
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        for name in self.reads:
            known = self.known_inputs.get(name)
            model.graph.input.append(known or _described(name, [values[name] for values in runs]))
        return bytes(model.SerializeToString())


def split(path: Path, outputs: Collection[str], part_bytes: int) -> list[Part]:
    """Splits an ONNX file, in the order of its operators, into parts of at most so many bytes of weights.

    Constants of less than 1 KB do not count.

    Args:
        path: The file, as ``export_onnx`` writes it.
        outputs: Names of those of its outputs that are to be found.
        part_bytes: Bytes of weights of a part; an operator with more is a part by itself.
    """
    outline = read_outline(path)
    whole = onnx.ModelProto.FromString(outline.model)
    graph = onnx.GraphProto.FromString(outline.graph)
    weights = {one.name: one for one in (_located(path, *found) for found in outline.initializers)}
    groups = _grouped(graph.node, {name: _bytes_of(one) for name, one in weights.items()}, part_bytes)
    inputs = {one.name: one for one in graph.input}
    declared = {one.name: one for one in graph.output}
    known = {name for node in graph.node for name in node.output} | inputs.keys()
    parts, later = [], frozenset(outputs)
    for nodes in reversed(groups):
        made = {name for node in nodes for name in node.output}
        read = {name for node in nodes for name in _read_by(node)}
        reads, gives = sorted((read & known) - made), sorted(made & later)
        part = onnx.ModelProto()
        part.CopyFrom(whole)
        part.graph.name = graph.name
        part.graph.node.extend(nodes)
        part.graph.initializer.extend(weights[name] for name in sorted(read & weights.keys()))
        part.graph.output.extend(declared.get(name) or onnx.ValueInfoProto(name=name) for name in gives)
        parts.append(Part(part, inputs, tuple(reads), tuple(gives), later))
        later = (later - made) | frozenset(reads)
    return parts[::-1]


def _grouped(nodes: Iterable[onnx.NodeProto], sizes: Mapping[str, int], most: int) -> list[list[onnx.NodeProto]]:
    groups: list[list[onnx.NodeProto]] = [[]]
    held: set[str] = set()
    for node in nodes:
        own = {name for name in _read_by(node) if sizes.get(name)}
        if groups[-1] and own - held and sum(sizes[name] for name in held | own) > most:
            groups.append([])
            held = set()
        groups[-1].append(node)
        held |= own
    return groups


def _read_by(node: onnx.NodeProto) -> Iterator[str]:
    """Names that a node reads, those that the branches and loops in it take from outside among others."""
    yield from node.input
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            yield from (one.name for one in graph.output)
            for inner in graph.node:
                yield from _read_by(inner)


def _located(path: Path, header: bytes, values: tuple[int, int] | None) -> onnx.TensorProto:
    """An initializer whose raw values are those in the file."""
    tensor = onnx.TensorProto.FromString(header)
    if values is not None:
        tensor.data_location = onnx.TensorProto.EXTERNAL
        region = {"location": path.name, "offset": values[0], "length": values[1]}
        tensor.external_data.extend(
            onnx.StringStringEntryProto(key=key, value=str(value)) for key, value in region.items()
        )
    return tensor


def _bytes_of(tensor: onnx.TensorProto) -> int:
    outside = external_data_helper.uses_external_data(tensor)
    return int(external_data_helper.ExternalDataInfo(tensor).length or 0) if outside else 0


def _described(name: str, values: Sequence[Any]) -> onnx.ValueInfoProto:
    """Type and shape of a value, as it is in several runs; a list is a sequence of tensors."""
    if isinstance(values[0], list):
        return helper.make_tensor_sequence_value_info(name, helper.np_dtype_to_tensor_dtype(values[0][0].dtype), None)
    lengths = map(set, zip(*(value.shape for value in values), strict=True))
    shape = [found.pop() if len(found) == 1 else None for found in lengths]
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(values[0].dtype), shape)
