"""In which libraries, and in which precisions, a quantised network is tried."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from stepfuse.backends.host.available import installed, precisions_of
from stepfuse.backends.host.config import BACKENDS
from stepfuse.backends.host.interface import PREDICTION, SAMPLE
from stepfuse.backends.host.onnxruntime import open_session
from stepfuse.bundle.onnx_file import OnnxFile

Array = npt.NDArray[Any]
Feed = Mapping[str, Array]
Predict = Callable[[Feed], Array]

#: What is not quantised is computed in one of them, where the processor has it.
_PRECISIONS = ("float32", "bf16")


@dataclass(frozen=True)
class Way:
    """How a network runs on the CPU.

    Attributes:
        backend: As in ``Engine.load``.
        precision: Of what is not in int8, likewise.
    """

    backend: str = "onnxruntime"
    precision: str = "float32"

    def __str__(self) -> str:
        return self.backend if self.precision == "float32" else f"{self.backend} {self.precision}"


def ways(backends: Sequence[str] | None) -> list[Way]:
    """All ways of these back ends that the processor computes in; None: of those that are installed.

    Raises:
        ValueError: If one is unknown or not installed, or there is none.
    """
    if isinstance(backends, str) or (backends is not None and not backends):
        raise ValueError(f"backends must list some of {', '.join(BACKENDS)}, got {backends!r}")
    here = installed()
    for name in backends or ():
        if name not in here:
            raise ValueError(f"backends must be among those installed, {', '.join(here)}, got {name!r}")
    names = here if backends is None else [name for name in here if name in backends]
    return [Way(name, one) for name in names for one in _PRECISIONS if one in precisions_of(name)]


def open_way(network: OnnxFile, way: Way, threads: int) -> Predict:
    """What predicts by a network.

    Args:
        network: Its ONNX file.
        way: How it runs.
        threads: As in ``Engine.load``.

    Raises:
        BundleError: If ONNX Runtime does not load it.
        RuntimeError: If OpenVINO does not read it, or later does not compile it.
    """
    return _OpenVino(network, way, threads) if way.backend == "openvino" else _OnnxRuntime(network, threads)


class _OnnxRuntime:
    def __init__(self, network: OnnxFile, threads: int) -> None:
        self._session = open_session(network, threads=threads, spinning=False)

    def __call__(self, feed: Feed) -> Array:
        prediction: Array = self._session.run([PREDICTION], dict(feed))[0]
        return prediction


class _OpenVino:
    """Compiled for one number of rows at a time: weights are in memory once."""

    def __init__(self, network: OnnxFile, way: Way, threads: int) -> None:
        import openvino as ov

        from stepfuse.backends.host.openvino.library import settings

        self._core = ov.Core()
        self._core.set_property({"ENABLE_MMAP": False})  # the file may be replaced while it runs
        self._settings = settings(way.precision, threads=threads, pinning=False)
        with network.laid_out(copied=True) as path:
            self._model = self._core.read_model(path)
        self._rows = 0
        self._request: Any = None

    def __call__(self, feed: Feed) -> Array:
        rows = len(feed[SAMPLE])
        if rows != self._rows:
            self._request = None
            self._model.reshape({name: list(values.shape) for name, values in feed.items()})
            self._request = self._core.compile_model(self._model, "CPU", self._settings).create_infer_request()
            self._rows = rows
        return np.array(self._request.infer(dict(feed))[PREDICTION])
