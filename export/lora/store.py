"""A bundle's original weights, from before its LoRAs, as a file of the bundle."""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from stepfuse.bundle.bundle import Bundle
from stepfuse.errors import BundleError
from stepfuse.export.onnx.initializers import Weight

ORIGINALS = "lora_originals.safetensors"  # a file of the bundle
LORAS = "loras"  # in a manifest's export entry: name, sha256, scale of each, the first fused first

_DTYPES = {"F32": "<f4", "F16": "<f2"}


def stored(bundle: Bundle) -> dict[tuple[str, str], Weight]:
    """The original weights, by ONNX file and initializer; empty for a bundle without LoRAs.

    Raises:
        BundleError: If the file is damaged.
    """
    path = bundle.file(ORIGINALS)
    if path is None:
        return {}
    try:
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            size = path.stat().st_size - 8 - length
            if size < 0:
                raise ValueError(f"its header of {length} bytes is longer than the file")
            entries = json.loads(stream.read(length))
        found = {}
        for key, entry in entries.items():
            model, name = key.split("/", 1)
            begin, end = map(operator.index, entry["data_offsets"])
            shape, dtype = tuple(map(operator.index, entry["shape"])), np.dtype(_DTYPES[entry["dtype"]])
            if model not in bundle.files:
                raise ValueError(f"{model} is no file of the bundle")
            nbytes = math.prod(shape) * dtype.itemsize
            if min(shape, default=1) < 0 or not 0 <= begin <= end <= size or end - begin != nbytes:
                raise ValueError(f"{name} does not lie in the file")
            found[model, name] = Weight(name, path, 8 + length + begin, dtype, shape)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BundleError(f"{path} must hold the weights before the LoRAs: {error!r}") from error
    return found


def store(path: Path, weights: Mapping[tuple[str, str], Weight]) -> None:
    """Writes the present values of weights, one at a time, as a safetensors file."""
    header, end = {}, 0
    for (model, name), weight in weights.items():
        header[f"{model}/{name}"] = {
            "dtype": next(code for code, dtype in _DTYPES.items() if dtype == weight.dtype.str),
            "shape": list(weight.shape),
            "data_offsets": [end, end + weight.nbytes],
        }
        end += weight.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # so that values are aligned
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for weight in weights.values():
            stream.write(weight.read().tobytes())
