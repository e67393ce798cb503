"""The denoiser as a small, clean ONNX graph: no traces of the exporting machine, no arithmetic that does nothing."""

from __future__ import annotations

import numpy as np
import onnx
import torch
from model import NULL_CLASS, Denoiser
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, numpy_helper

INPUT_NAMES = ("sample", "timestep", "class_labels")
OUTPUT_NAME = "prediction"
CHECKED_ROWS = (1, 2, 7, 32)
MAX_ERROR = 1e-4


def example(rows: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Make inputs of ``rows`` rows: normal samples, timesteps and labels of every kind."""
    rng = torch.Generator().manual_seed(seed)
    sample = torch.randn(rows, 1, 28, 28, generator=rng)
    timestep = torch.randint(0, 1000, (rows,), generator=rng).float()
    return sample, timestep, torch.randint(0, NULL_CLASS + 1, (rows,), generator=rng)


def to_onnx(model: Denoiser) -> ModelProto:
    """Export with a dynamic number of rows; the initialisers keep the names of the state dict."""
    rows = torch.export.Dim("rows", min=1)
    program = torch.onnx.export(
        model.eval(),
        example(3),
        dynamo=True,
        dynamic_shapes=({0: rows},) * len(INPUT_NAMES),
        input_names=INPUT_NAMES,
        output_names=(OUTPUT_NAME,),
        verbose=False,
    )
    if program is None:
        raise RuntimeError("torch.onnx.export must return a program, got None")
    proto = program.model_proto
    drop_identities(proto)
    drop_metadata(proto)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def drop_identities(proto: ModelProto) -> None:
    """Remove ``x * 1`` and ``x + 0``, which is what the exporter makes of a group norm without affine part."""
    graph = proto.graph
    neutral = {"Mul": 1.0, "Add": 0.0}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    renamed: dict[str, str] = {}
    kept = []
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        constant = constants.get(node.input[1]) if node.op_type in neutral else None
        if constant is not None and len(constant.dims) < 4 and is_filled(constant, neutral[node.op_type]):
            renamed[node.output[0]] = node.input[0]
        else:
            kept.append(node)
    used = {name for node in kept for name in node.input}
    initializers = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(kept)
    graph.initializer.extend(initializers)


def is_filled(tensor: TensorProto, value: float) -> bool:
    """Tell whether a constant holds ``value`` everywhere."""
    return bool(np.all(numpy_helper.to_array(tensor) == value))


def drop_metadata(proto: ModelProto) -> None:
    """Remove what the exporter noted about its sources, some of it with paths of the machine it ran on."""
    graph = proto.graph
    del graph.value_info[:]
    for part in (proto, graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")


def max_error(model: Denoiser, proto: ModelProto) -> float:
    """Measure the largest absolute difference between torch and ONNX Runtime over several row counts.

    Raises:
        ValueError: If it is above ``MAX_ERROR``.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    worst = 0.0
    for rows in CHECKED_ROWS:
        inputs = example(rows, seed=rows)
        feeds = {name: tensor.numpy() for name, tensor in zip(INPUT_NAMES, inputs, strict=True)}
        with torch.inference_mode():
            expected: NDArray[np.float32] = model.eval()(*inputs).numpy()
        (got,) = session.run([OUTPUT_NAME], feeds)
        worst = max(worst, float(np.abs(got - expected).max()))
    if not worst <= MAX_ERROR:
        raise ValueError(f"ONNX Runtime must agree with torch to {MAX_ERROR} at every row count, got {worst:.2e}")
    return worst
