"""The network of a judge: an ONNX classifier, opened and run in batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stepfuse.analysis.measures.frechet import Images
from stepfuse.backends.host.onnxruntime import CPU, session_of, session_options
from stepfuse.bundle.onnx_file import OnnxFile
from stepfuse.errors import BundleError

BATCH = 256  # images a forward; more only costs memory


def open_network(file: Path | OnnxFile, shape: tuple[int, ...], classes: int, features: int | None = None) -> Any:
    """An ONNX Runtime session of a judge's network.

    Args:
        file: The ONNX file.
        shape: Shape of one image.
        classes: Size of ``logits``.
        features: Size of ``features``; None takes the network's.

    Raises:
        BundleError: If the file is no ONNX model, or its inputs and outputs are not ``images``, ``logits`` and
            ``features`` of these sizes in float32, with a dynamic first dimension.
    """
    options = session_options({"session.intra_op.allow_spinning": "0"})  # it runs between samplers, on their cores
    session = session_of(file, options, [CPU])
    path = file.path if isinstance(file, OnnxFile) else file
    nodes = {node.name: node for node in (*session.get_inputs(), *session.get_outputs())}
    if set(nodes) != {"images", "logits", "features"} or len(session.get_inputs()) != 1:
        raise BundleError(f"{path}: must have input images, outputs logits and features, got {', '.join(nodes)}")
    for name, row in {"images": shape, "logits": (classes,), "features": (features,)}.items():
        found = tuple(nodes[name].shape)
        sizes_fit = len(found) == len(row) + 1 and all(b in (a, None) for a, b in zip(found[1:], row, strict=True))
        if isinstance(found[0], int) or not sizes_fit or nodes[name].type != "tensor(float)":
            raise BundleError(f"{path}: {name} must be float32 (n, {', '.join(map(str, row))}), got {found}")
    return session


def run_network(session: Any, output: str, images: Images) -> npt.NDArray[np.float32]:
    """One output of the network for any number of images, a batch at a time."""
    parts = [session.run([output], {"images": images[i : i + BATCH]})[0] for i in range(0, len(images), BATCH)]
    rows: npt.NDArray[np.float32] = np.concatenate(parts)
    return rows


def to_model_range(images: npt.NDArray[np.uint8]) -> Images:
    """Pixels 0..255 as float32 in [-1, 1]."""
    return images.astype(np.float32) / np.float32(127.5) - np.float32(1.0)
