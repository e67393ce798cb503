"""ONNX Runtime on the CPU, on the loop's own memory: no copy and no allocation a step."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from stepfuse.backends.host.base import HostBackend, checked_threads, fitting
from stepfuse.backends.host.interface import (
    PREDICTION,
    SAMPLE,
    TIMESTEP,
    Node,
    check_interface,
    input_rows,
)
from stepfuse.backends.host.processors import held_to
from stepfuse.bundle.model_info import ModelInfo
from stepfuse.bundle.onnx_file import OnnxFile
from stepfuse.errors import BundleError, DenoiserError
from stepfuse.lora.adapters import PLAIN, Adapters

try:
    import onnxruntime as ort
except ImportError as error:  # installed without its dependencies, or both of its packages fought over one folder
    raise ImportError(
        "ONNX Runtime cannot be imported: install it with 'pip install onnxruntime', or on a machine with a GPU"
        " 'pip uninstall onnxruntime' and 'pip install onnxruntime-gpu' (never both)"
    ) from error

CPU = "CPUExecutionProvider"

#: Microseconds that threads wait actively by default: enough for the end of an operator on idle processors, and little
#: where others use them (benchmarks/threads.py).
SPIN_US = 10

_TAKES_DURATIONS = (1, 26)  # releases before know none
_RELEASE = tuple(int(number) for number in ort.__version__.split(".")[:2])

#: Seconds of a forward from which it can be given up: what that takes costs ONNX Runtime 40 us a run (1.32).
_LONG = 2e-3


def open_session(
    model: Path | OnnxFile, *, threads: int = 0, spinning: bool | None = None, content: bytes | None = None
) -> ort.InferenceSession:
    """An ONNX file in a session on the CPU.

    Args:
        model: The ONNX file, with external data beside or below it; ``Bundle.networks`` has it as it was checked.
        threads: Threads inside an operator; 0 is ONNX Runtime's own choice, a thread a core, or one for each processor
            that the process may use (``processors``), if these are fewer than the machine has.
        spinning: How a thread waits for the others' part of an operator. None is a short while actively and then
            asleep; True longer actively, as ONNX Runtime would; False asleep at once.
        content: The model in the place of the file's, with the same external data; None: the file's.

    Raises:
        BundleError: If the file is no ONNX model, or names a file elsewhere.
        ValueError: If ``threads`` is negative, or more than four a processor and more than 64.
        TypeError: If it is not a whole number.
    """
    options = session_options(_waiting(spinning))
    options.intra_op_num_threads = checked_threads(threads) or held_to()
    options.inter_op_num_threads = 1
    return session_of(model, options, [CPU], content)


def _waiting(spinning: bool | None) -> dict[str, str]:
    """Configuration of how threads wait."""
    if spinning is None and _RELEASE >= _TAKES_DURATIONS:
        return {"session.intra_op.allow_spinning": "1", "session.intra_op.spin_duration_us": str(SPIN_US)}
    return {"session.intra_op.allow_spinning": "1" if spinning else "0"}


def session_options(entries: Mapping[str, str]) -> ort.SessionOptions:
    """Options of a session that logs errors alone, with these configuration entries."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    return options


def session_of(
    model: Path | OnnxFile, options: ort.SessionOptions, providers: Sequence[Any], content: bytes | None = None
) -> ort.InferenceSession:
    """An ONNX file in a session on these execution providers; where they fail no other is tried.

    ONNX Runtime is given open files, and opens none by a name that the model has.

    Raises:
        BundleError: If it does not load, or is written to meanwhile.
    """
    onnx = model if isinstance(model, OnnxFile) else OnnxFile.open(model)
    options.add_session_config_entry("session.load_model_format", "ONNX")
    try:
        with _with_external_data(onnx, options, content) as given:
            session = ort.InferenceSession(given, options, providers=providers, enable_fallback=0)
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        raise BundleError(f"{onnx.path} does not load in ONNX Runtime: {error}") from error
    onnx.require_unchanged()
    return session


@contextmanager
def _with_external_data(onnx: OnnxFile, options: ort.SessionOptions, content: bytes | None) -> Iterator[str | bytes]:
    """The model, or a path that leads to the open one; its external data are those that are open, too."""
    if onnx.data and hasattr(options, "add_external_initializers_from_files_in_memory"):
        contents = [file.mapped() for file in onnx.data.values()]
        sizes = [len(content) for content in contents]
        options.add_external_initializers_from_files_in_memory(list(onnx.data), contents, sizes)
        yield onnx.file.link if content is None else content
    else:  # before 1.24 it follows links
        with onnx.laid_out() as path:
            if content is not None and onnx.data:
                Path(path).unlink()
                Path(path).write_bytes(content)
            yield path if content is None or onnx.data else content


def run_options(entries: Mapping[str, str]) -> ort.RunOptions:
    """Options of a run with these configuration entries."""
    options = ort.RunOptions()
    for key, value in entries.items():
        options.add_run_config_entry(key, value)
    return options


def returning_memory(device: str = "cpu:0") -> ort.RunOptions:
    """Options of a run after which the session gives back what its intermediate results took, which else it keeps.

    Args:
        device: Whose memory, such as ``gpu:0``; the session must be on it.
    """
    return run_options({"memory.enable_memory_arena_shrinkage": device})


def available_providers() -> list[str]:
    """Execution providers that this ONNX Runtime was built with; their libraries may be missing all the same."""
    return list(ort.get_available_providers())


def preload_libraries() -> None:
    """Loads the CUDA and cuDNN libraries that pip has installed, where nothing else looks for them."""
    preload = getattr(ort, "preload_dlls", None)  # since 1.21
    if preload is not None:
        preload(msvc=False)


class OnnxRuntimeNetwork:
    """A bundle's network in a session, for engines of any shape to share.

    Args:
        session: The network.
        model: Its file, for messages.
        adapters: Its LoRAs, if its graph takes any.
    """

    computed_by = ""

    def __init__(self, session: ort.InferenceSession, model: Path, adapters: Adapters | None = None) -> None:
        self._session = session
        self._model = model
        self.adapters = adapters

    def backend(self, info: ModelInfo, max_rows: int, *, deterministic: bool) -> OnnxRuntimeBackend:
        """The network in the memory of an engine of its own; ``deterministic`` is the loop's affair, which pads.

        Raises:
            BundleError: If the network's inputs and output are not those of ``info``.
        """
        return OnnxRuntimeBackend(self._session, self._model, info, max_rows, self.adapters)


class OnnxRuntimeBackend(HostBackend):
    """A bundle's ``denoiser.onnx`` in an ONNX Runtime session, which several of these may share.

    Args:
        session: The network.
        model: Its file, for messages.
        info: What its inputs and output must be.
        max_rows: Most rows of one forward.
        adapters: The session's LoRAs, if its graph takes any.

    Raises:
        BundleError: If the network's inputs and output are not those of the manifest.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        model: Path,
        info: ModelInfo,
        max_rows: int,
        adapters: Adapters | None = None,
    ) -> None:
        rows = input_rows(info)
        self._factors = {} if adapters is None else adapters.factors(PLAIN, model.name)
        inputs = [node for node in session.get_inputs() if node.name not in self._factors]
        # before memory is taken for what a manifest says
        check_interface(model, nodes(inputs), nodes(session.get_outputs()), rows, rows[SAMPLE])
        with fitting(model, max_rows):
            super().__init__(info, max_rows)
        self._session = session
        self.adapters = adapters
        self._model = model.name
        self._set: int | None = PLAIN
        self._bindings: dict[int, ort.IOBinding] = {}  # by rows, of that set
        self._run_options = ort.RunOptions()
        self._interruptible: ort.RunOptions | None = self._run_options

    def forward(self, rows: int, adapters: int = PLAIN) -> None:
        """Runs the first ``rows`` rows; the session releases the GIL while it computes.

        Args:
            rows: How many.
            adapters: Number of the set of LoRAs.

        Raises:
            DenoiserError: If ONNX Runtime cannot.
        """
        if adapters != self._set:
            self._change_set(adapters)
        binding = self._bindings.get(rows) or self._bind(rows)
        began = time.perf_counter()
        try:
            self._session.run_with_iobinding(binding, self._interruptible)
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise DenoiserError(f"ONNX Runtime could not run {rows} rows: {error}") from error
        self._interruptible = self._run_options if time.perf_counter() - began > _LONG else None

    def interrupt(self) -> None:
        """Has ONNX Runtime give a forward up before its next operator; runs of others who share the session go on.

        One whose last forward was short is not given up: it ends by itself.
        """
        self._run_options.terminate = True

    def close(self) -> None:
        """Lets the session go: it is freed with the last that shares it."""
        self._bindings.clear()
        del self._session

    def _change_set(self, adapters: int) -> None:
        """Has the forwards to come be of another set; the factors of one set alone are put together at a time."""
        assert self.adapters is not None, "a network without adapters has one set"
        self._bindings.clear()
        self._set, self._factors = None, {}  # before others take memory
        self._factors = self.adapters.factors(adapters, self._model)
        self._set = adapters

    def _bind(self, rows: int) -> ort.IOBinding:
        binding = self._session.io_binding()
        inputs = {SAMPLE: self.buffers.sample, TIMESTEP: self.buffers.timestep, **self.buffers.cond}
        for name, view in {**{name: memory[:rows] for name, memory in inputs.items()}, **self._factors}.items():
            binding.bind_input(name, "cpu", 0, view.dtype.type, view.shape, view.ctypes.data)
        view = self.buffers.prediction[:rows]
        binding.bind_output(PREDICTION, "cpu", 0, np.float32, view.shape, view.ctypes.data)
        self._bindings[rows] = binding
        return binding


_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(bool)": "bool",
}


def nodes(found: Sequence[ort.NodeArg]) -> dict[str, Node]:
    """A session's inputs or outputs by name."""
    return {
        one.name: Node(
            _DTYPES.get(one.type, one.type), tuple(size if isinstance(size, int) else None for size in one.shape)
        )
        for one in found
    }
