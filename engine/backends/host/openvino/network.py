"""A bundle's network in OpenVINO: compiled for one shape and number of rows at a time, or found compiled."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import openvino as ov

from stepfuse import _core
from stepfuse.backends.host.config import OpenVino
from stepfuse.backends.host.interface import SAMPLE, Node, check_interface, input_rows
from stepfuse.backends.host.openvino.backend import OpenVinoBackend, default_buckets
from stepfuse.backends.host.openvino.library import (
    DEVICE,
    facts,
    require_precision,
    require_right,
    settings,
    warn_of_emulation,
)
from stepfuse.bundle.bundle import DENOISER, Bundle
from stepfuse.bundle.model_info import ModelInfo
from stepfuse.errors import BundleError
from stepfuse.files.cache import FileCache

#: Most bytes of compiled networks that are kept.
MOST_BYTES = 4 << 30


def compile_cache(folder: str | os.PathLike[str] | None) -> FileCache:
    """Where compiled networks are kept; None is the user's own folder."""
    chosen = Path.home() / ".cache/stepfuse/openvino" if folder is None else Path(folder)
    return FileCache(chosen, ".compiled", noun="a compiled network", verb="compiled", most_bytes=MOST_BYTES)


class OpenVinoNetwork:
    """What compiles a bundle's denoiser; engines of any shape share it.

    Args:
        bundle: The model folder.
        how: How it runs.
        precision: What it is computed in.
        threads: Threads of a forward; 0 is a thread a core that the process may use.
    """

    def __init__(self, bundle: Bundle, how: OpenVino, *, precision: str, threads: int) -> None:
        self._onnx = bundle.networks[DENOISER]
        self._core = ov.Core()
        self._core.set_property({"ENABLE_MMAP": False})  # what is written to a file later changes nothing
        self._precision = precision
        self._buckets = how.buckets
        self._settings = settings(precision, threads=threads, pinning=how.pinning)
        self._cache = compile_cache(how.cache)
        names = (DENOISER, *self._onnx.data)
        self._facts = {
            "files": {name: bundle.files[name]["sha256"] for name in names},
            "settings": {**self._settings, "ENABLE_CPU_PINNING": False},  # which changes nothing that is compiled
            "instruction_sets": list(_core.isas()),
            **facts(self._core),
        }
        self._weights = sum(file.size for file in (self._onnx.file, *self._onnx.data.values()))

    adapters = None

    @property
    def computed_by(self) -> str:
        """As in ``ModelIdentity``."""
        return f"openvino {self._precision}"

    @property
    def path(self) -> Path:
        """The network's file, for messages."""
        return self._onnx.path

    def backend(self, info: ModelInfo, max_rows: int, *, deterministic: bool) -> OpenVinoBackend:
        """As ``HostNetwork.backend``; raises as ``compile`` does, too.

        Raises:
            ValueError: If it is ``deterministic``, which computes row by row, and buckets were given, or OpenVINO gives
                wrong products in this precision on this processor.

        Warns:
            EmulatedPrecisionWarning: If the processor does not compute in the precision asked for.
        """
        if deterministic and self._buckets is not None:
            raise ValueError(
                f"buckets must be left out with deterministic=True, which computes row by row, got {self._buckets}"
            )
        require_right(self._precision)
        buckets = [1] if deterministic else self._buckets or default_buckets(max_rows, self._weights)
        found = OpenVinoBackend(self, info, max_rows, buckets)
        found.rowwise = deterministic
        warn_of_emulation(self._core, self._precision)
        return found

    def compile(self, info: ModelInfo, rows: int) -> ov.CompiledModel:
        """The network for this many rows of samples of this shape.

        Raises:
            BundleError: If OpenVINO cannot read or compile it, or its inputs and output are not those of ``info``.
            ValueError: If it does not compute in the precision asked for.
        """
        shapes = {name: (rows, *row.shape) for name, row in input_rows(info).items()}
        file = self._cache.file(
            {**self._facts, "shapes": shapes, "dtypes": [r.dtype for r in input_rows(info).values()]}
        )
        compiled = self._kept(file)
        if compiled is None:
            model = self._read(info)
            try:
                model.reshape({name: list(shape) for name, shape in shapes.items()})
                compiled = self._core.compile_model(model, DEVICE, self._settings)
            except Exception as error:  # OpenVINO's exceptions share no base class
                raise _refusal(self.path, error) from error
            self._cache.write(file, compiled.export_model().getbuffer())
        require_precision(self._core, compiled, self._precision)
        return compiled

    def _kept(self, file: Path) -> ov.CompiledModel | None:
        found = self._cache.read(file)
        if found is None:
            return None
        try:
            return self._core.import_model(found.tobytes(), DEVICE, self._settings)
        except Exception as error:  # OpenVINO's exceptions share no base class
            self._cache.drop(file, _line(error))
            return None

    def _read(self, info: ModelInfo) -> ov.Model:
        try:
            with self._onnx.laid_out(copied=True) as path:
                model = self._core.read_model(path)
        except Exception as error:  # OpenVINO's exceptions share no base class
            raise _refusal(self.path, error) from error
        self._onnx.require_unchanged()
        rows = input_rows(info)
        check_interface(self.path, _nodes(model.inputs), _nodes(model.outputs), rows, rows[SAMPLE])
        return model


def _nodes(ports: Any) -> dict[str, Node]:
    return {
        port.any_name: Node(
            port.element_type.to_dtype().name,
            tuple(size.get_length() if size.is_static else None for size in port.partial_shape),
        )
        for port in ports
    }


def _refusal(path: Path, error: Exception) -> BundleError:
    return BundleError(f"{path} does not load in OpenVINO: {_line(error)}: backend='onnxruntime' may run it")


def _line(error: Exception) -> str:
    """OpenVINO's message without the places in its own sources that it came by."""
    lines = [line.strip() for line in str(error).splitlines()]
    return " ".join(line for line in lines if line and not line.startswith("Exception from "))
