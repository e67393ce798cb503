"""A feature function from an ONNX file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stepfuse.analysis.measures.frechet import FeatureFunction, Images
from stepfuse.analysis.measures.judge_network import BATCH


def feature_function(path: str | os.PathLike[str], shape: tuple[int, ...]) -> FeatureFunction:
    """The feature function of an ONNX file: samples (n, *shape) are its one input; its first output is flattened.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no ONNX model or has not exactly one float32 input; from the function itself, if the
            network does not take samples of ``shape``.
    """
    import onnxruntime as ort

    file = os.fspath(path)
    if not Path(file).is_file():
        raise FileNotFoundError(f"features must be an ONNX file, got {file}")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    try:
        session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        raise ValueError(f"{file} must be an ONNX model: {error}") from error
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if len(inputs) != 1 or inputs[0].type != "tensor(float)":
        raise ValueError(f"{file} must have one float32 input, got {', '.join(f'{i.name} {i.type}' for i in inputs)}")

    def features(images: Images) -> npt.NDArray[np.floating[Any]]:
        batches = [np.ascontiguousarray(images[i : i + BATCH], np.float32) for i in range(0, len(images), BATCH)]
        try:
            found = [session.run([outputs[0].name], {inputs[0].name: batch})[0] for batch in batches]
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise ValueError(f"{file} must take samples of shape (n, {', '.join(map(str, shape))}): {error}") from error
        return np.concatenate([one.reshape(len(one), -1) for one in found])

    return features
