"""ONNX files written a weight at a time, so that memory never holds a second copy of all weights."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import IO

from stepfuse.display import byte_size
from stepfuse.errors import ExportError
from stepfuse.export.onnx.initializers import SMALL
from stepfuse.extras import pip_install

try:
    import onnx
    import onnx_ir as ir
except ImportError as error:
    raise ImportError(f"exporting needs onnx ({error}): {pip_install('export')}") from error

EXTERNAL_FROM = 2_000_000_000  # bytes of weights; one protobuf message ends at 2^31 - 1
DATA_SUFFIX = ".data"
_ALIGNMENT = 4096  # a page, so that a reader may map weights into memory

_MODEL_GRAPH, _GRAPH_INITIALIZER, _TENSOR_RAW_DATA = 7, 5, 9  # field numbers of onnx.proto


def write_onnx(model: ir.Model, path: Path, external: bool | None = None) -> tuple[list[Path], int]:
    """Writes a model; lazy weights are computed one at a time, as they are written.

    Args:
        model: The model.
        path: The file to write, replaced if it is there.
        external: Whether weights go to ``path`` with ``.data`` added; None: from 2 GB on.

    Returns:
        The files, and how many bytes of weights they hold.

    Raises:
        ExportError: If the disk is too small, or a weight has no value; the files are removed then.
    """
    tensors = [_named(name, value) for name, value in model.graph.initializers.items()]
    weight_bytes = sum(tensor.nbytes for tensor in tensors)
    if external is None:
        external = weight_bytes >= EXTERNAL_FROM
    data = path.with_name(path.name + DATA_SUFFIX)
    if (free := shutil.disk_usage(path.parent).free) < weight_bytes:
        raise ExportError(_too_small(path, weight_bytes, f"{byte_size(free)} are free"))
    files = [path, data] if external else [path]
    fragments: list[tuple[bytes, ir.TensorProtocol | None]]
    try:
        if external:
            headers = _write_data(data, tensors)
            fragments = [(_bytes(header), None) for header in headers]
        else:
            fragments = [(_bytes(_header(tensor)), tensor) for tensor in tensors]
        with path.open("wb") as stream:
            _write_model(stream, _without_weights(model), fragments)
    except BaseException as error:
        for file in files:
            file.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise ExportError(_too_small(path, weight_bytes, str(error))) from error
        raise
    return files, weight_bytes


def _named(name: str, value: ir.Value) -> ir.TensorProtocol:
    tensor = value.const_value
    if tensor is None:
        raise ExportError(f"{name} has no value: a graph's weights must be known when it is written")
    tensor.name = name
    return tensor


def _header(tensor: ir.TensorProtocol) -> onnx.TensorProto:
    """A tensor without its values."""
    return onnx.TensorProto(name=tensor.name, data_type=int(tensor.dtype), dims=tensor.shape.numpy())


def _write_data(data: Path, tensors: list[ir.TensorProtocol]) -> list[onnx.TensorProto]:
    headers = []
    with data.open("wb") as stream:
        for tensor in tensors:
            header = _header(tensor)
            if tensor.nbytes < SMALL:
                header.raw_data = tensor.tobytes()
            else:
                stream.write(bytes(-stream.tell() % _ALIGNMENT))
                header.data_location = onnx.TensorProto.EXTERNAL
                region = {"location": data.name, "offset": stream.tell(), "length": tensor.nbytes}
                header.external_data.extend(
                    onnx.StringStringEntryProto(key=key, value=str(value)) for key, value in region.items()
                )
                stream.write(tensor.tobytes())
            headers.append(header)
    return headers


def _without_weights(model: ir.Model) -> onnx.ModelProto:
    weights = dict(model.graph.initializers)
    model.graph.initializers.clear()
    try:
        proto = ir.serde.serialize_model(model)
    finally:
        model.graph.initializers.update(weights)
    proto.graph.ClearField("value_info")  # readers infer it, and torch's symbols for sizes mean nothing to them
    return proto


def _write_model(
    stream: IO[bytes], model: onnx.ModelProto, fragments: list[tuple[bytes, ir.TensorProtocol | None]]
) -> None:
    """Writes the model with its initializers: the bytes of each one's header, and the values of its tensor if given."""
    graph = _bytes(model.graph)
    model.ClearField("graph")
    sizes = [
        len(header) + (0 if tensor is None else _field_size(_TENSOR_RAW_DATA, tensor.nbytes))
        for header, tensor in fragments
    ]
    stream.write(_bytes(model))
    stream.write(_key(_MODEL_GRAPH, len(graph) + sum(_field_size(_GRAPH_INITIALIZER, size) for size in sizes)))
    stream.write(graph)
    for size, (header, tensor) in zip(sizes, fragments, strict=True):
        stream.write(_key(_GRAPH_INITIALIZER, size) + header)
        if tensor is not None:
            stream.write(_key(_TENSOR_RAW_DATA, tensor.nbytes))
            stream.write(tensor.tobytes())


def _bytes(message: onnx.ModelProto | onnx.GraphProto | onnx.TensorProto) -> bytes:
    return bytes(message.SerializeToString(deterministic=True))


def _key(number: int, length: int) -> bytes:
    """The prefix of a length-delimited field: its number, its wire type and its length, as varints."""
    return _varint(number << 3 | 2) + _varint(length)


def _field_size(number: int, length: int) -> int:
    return len(_key(number, length)) + length


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def _too_small(path: Path, needed: int, found: str) -> str:
    return f"{path.parent} must have room for {byte_size(needed)} of weights of {path.name}: {found}"
