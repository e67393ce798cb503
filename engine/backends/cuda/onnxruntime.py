"""ONNX Runtime on a GPU, through its CUDA or TensorRT execution provider, as a network whose forwards are captured.

Its own CUDA graphs (``enable_cuda_graph``) stay off: it launches them itself, and a launch cannot become part of a
trajectory. What it enqueues on our stream (``user_compute_stream``) is captured instead. A forward must then be what
ONNX Runtime asks of its own capture: no wait, and nothing of the network on the CPU but arithmetic on shapes. Some of
its CUDA kernels copy small arrays from the host, and a graph copies them again at each replay: GatherND from memory
that is freed by then, Concat and Split from memory that is freed after the run, and kept since its pull request 32121.
What cannot be replayed is refused.
"""

from __future__ import annotations

import logging
import weakref
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stepfuse._core import cuda
from stepfuse.backends.cuda.driver_network import DriverNetwork
from stepfuse.backends.cuda.memory import is_out_of_memory
from stepfuse.backends.host.interface import (
    PREDICTION,
    SAMPLE,
    TIMESTEP,
    Row,
    check_interface,
)
from stepfuse.backends.host.onnxruntime import (
    CPU,
    available_providers,
    nodes,
    preload_libraries,
    run_options,
    session_of,
    session_options,
)
from stepfuse.bundle.bundle import DENOISER, Bundle
from stepfuse.bundle.model_info import ModelInfo
from stepfuse.bundle.onnx_file import OnnxFile
from stepfuse.errors import BundleError, DenoiserError, ProviderError

CUDA, TENSORRT = "CUDAExecutionProvider", "TensorrtExecutionProvider"

_EXACT = {
    "arena_extend_strategy": "kSameAsRequested",  # as much memory as forwards need, all of which can be freed
    "use_tf32": "0",  # float32 is float32, as on the CPU
}

_CUDA_OPTIONS = {
    **_EXACT,
    "do_copy_in_default_stream": "1",  # copies go on the same stream, after what they copy
}

_NO_WAIT = {"disable_synchronize_execution_providers": "1"}

#: What ONNX Runtime's errors say where memory is exhausted: they have texts alone.
_OUT_OF_MEMORY = ("out of memory", "failed to allocate memory", "cuda failure 2:")

#: Options that the capture depends on, which a caller may not set.
_OURS = {"device_id", "user_compute_stream", "has_user_compute_stream", "enable_cuda_graph", "trt_cuda_graph_enable"}

logger = logging.getLogger("stepfuse")


class DenoiserSession:
    """A bundle's ``denoiser.onnx`` in an ONNX Runtime session on a GPU, and the stream that the session works on.

    Args:
        bundle: The model folder.
        providers: Execution providers, the first one first, with their options beyond those that captures depend on.
        device: Which GPU.

    Attributes:
        model: The network's file.
        device: The same.
        context: Of the GPU.
        stream: What all work is ordered on.
        session: ONNX Runtime's.
        on_cpu: Kinds of the nodes that no GPU runs, with their counts; empty if none.
        networks: Those that use it.

    Raises:
        ProviderError: If an execution provider is missing. Nothing falls back to the CPU.
        BundleError: If the network does not load.
        DenoiserError: If the GPU has no memory for it.
        CudaError: If there is no driver or it is too old.
    """

    def __init__(self, bundle: Bundle, providers: Mapping[str, Mapping[str, str]], *, device: int) -> None:
        _require([*providers])
        self.model, self.device = bundle.denoiser, device
        self.context = cuda.open(device)
        self.stream = cuda.Stream(self.context)
        on = {"device_id": str(device), "user_compute_stream": str(self.stream.address)}
        self.session = _open(bundle.networks[DENOISER], [(name, {**on, **own}) for name, own in providers.items()])
        self.networks: weakref.WeakSet[OnnxRuntimeNetwork] = weakref.WeakSet()
        self.on_cpu = _nodes_on_cpu(self.session)
        if self.on_cpu:
            logger.warning("%s: on the CPU, each forward: %s", self.model, self.on_cpu)

    def __del__(self) -> None:
        """The session is freed before the stream that it works on."""
        self.__dict__.pop("session", None)


class CudaSession:
    """Networks of several sizes in one session of the CUDA provider's.

    They share its weights, and the arena that forwards work in.

    Args:
        bundle: The model folder.
        device: Which GPU.
        options: Of the provider, beside and before our own.

    Raises:
        ValueError: If an option is one that captures depend on.
        ProviderError: As of ``DenoiserSession``, as are BundleError, DenoiserError and CudaError.
    """

    def __init__(self, bundle: Bundle, *, device: int = 0, options: Mapping[str, str] | None = None) -> None:
        _refuse_ours(options)
        self._session = DenoiserSession(bundle, {CUDA: {**_CUDA_OPTIONS, **(options or {})}}, device=device)

    def weights(self, info: ModelInfo, max_rows: int) -> object:
        """The same for all sizes."""
        return None

    def network(self, info: ModelInfo, max_rows: int) -> OnnxRuntimeNetwork:
        """The network for samples of a size; raises as ``OnnxRuntimeNetwork``."""
        return OnnxRuntimeNetwork(self._session, info, max_rows)


class TensorRTSessions:
    """A session for each size, in which TensorRT runs what it can, as ONNX Runtime has it, and CUDA the rest.

    Args:
        bundle: The model folder.
        device: Which GPU.
        options: Of the TensorRT provider, beside and before our own.

    Raises:
        ValueError: If an option is one that captures depend on.
        ProviderError: If a provider is missing.
    """

    def __init__(self, bundle: Bundle, *, device: int = 0, options: Mapping[str, str] | None = None) -> None:
        _refuse_ours(options)
        _require([TENSORRT, CUDA])
        self._bundle, self._device, self._options = bundle, device, options or {}

    def weights(self, info: ModelInfo, max_rows: int) -> object:
        """Others for each size."""
        return info.shape, max_rows

    def network(self, info: ModelInfo, max_rows: int) -> OnnxRuntimeNetwork:
        """The network for samples of a size; raises as ``DenoiserSession`` and ``OnnxRuntimeNetwork``."""
        providers = {TENSORRT: {**_profile(info, max_rows), **self._options}, CUDA: _CUDA_OPTIONS}
        return OnnxRuntimeNetwork(DenoiserSession(self._bundle, providers, device=self._device), info, max_rows)


class OnnxRuntimeNetwork(DriverNetwork):
    """A network in a session on a GPU, whose forwards are captured.

    Args:
        opened: The session, which others may share.
        info: What the network is.
        max_rows: Most rows of a forward.

    Raises:
        BundleError: If the session's network is not what ``info`` says.
        ValueError: If ``max_rows`` is below 1.
        CudaError: If there is no memory.
    """

    out_of_memory_texts = _OUT_OF_MEMORY

    def __init__(self, opened: DenoiserSession, info: ModelInfo, max_rows: int) -> None:
        super().__init__(opened.context, info, max_rows, stream=opened.stream)
        self._opened, self._session, self._device = opened, opened.session, opened.device
        self._rows = self._interface(opened.model)
        self._bindings: dict[int, Any] = {}
        self._run_options = run_options(_NO_WAIT)
        self._shrink = run_options({**_NO_WAIT, "memory.enable_memory_arena_shrinkage": f"gpu:{opened.device}"})
        if opened.on_cpu:
            self.rule += f". On the CPU are {opened.on_cpu}; what copies to or from it must not be there"
        opened.networks.add(self)

    def __del__(self) -> None:
        """The session is freed before the stream that it works on."""
        for name in ("_bindings", "_session"):
            self.__dict__.pop(name, None)

    def _interface(self, model: Path) -> dict[str, Row]:
        rows = {SAMPLE: Row(self.storage, self.info.shape), TIMESTEP: Row(self.info.timestep_dtype, ())}
        rows |= {name: Row(self.cond_storage[name], spec.shape) for name, spec in self.info.cond.items()}
        inputs, outputs = nodes(self._session.get_inputs()), nodes(self._session.get_outputs())
        check_interface(model, inputs, outputs, rows, rows[SAMPLE])
        return rows

    def forward(self, rows: int) -> None:
        """Enqueues a forward of the first ``rows`` rows, without waiting for it.

        Raises:
            DenoiserError: If ONNX Runtime refuses.
        """
        self._run(rows, self._run_options)

    def _run(self, rows: int, options: Any) -> None:
        binding = self._bindings.get(rows) or self._bind(rows)
        try:
            self._session.run_with_iobinding(binding, options)
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise DenoiserError(f"ONNX Runtime could not run {rows} rows: {error}") from error

    def _bind(self, rows: int) -> Any:
        binding = self._session.io_binding()
        for name, (dtype, shape) in self._rows.items():
            kind = np.dtype(dtype).type
            binding.bind_input(name, "cuda", self._device, kind, (rows, *shape), self.addresses[name])
        kind, shape = np.dtype(self.storage).type, (rows, *self.info.shape)
        binding.bind_output(PREDICTION, "cuda", self._device, kind, shape, self.addresses[PREDICTION])
        self._bindings[rows] = binding
        return binding

    def _free_unused(self) -> None:
        """The arena keeps what forwards allocate; after a run that asks for it, it frees what is not in use.

        What captured forwards of other networks work in is not in use to it, but they replay there.
        """
        if any(one.graphs for one in self._opened.networks):
            return
        self._run(1, self._shrink)
        self.stream.synchronize()

    def _captures(self, rows: int) -> bool:
        # The arena must have the memory before: none can be allocated while a stream is captured. The first run of a
        # row count finds its pattern of allocations, the second allocates it.
        try:
            for _ in range(2):
                self.forward(rows)
            self.stream.synchronize()
        except DenoiserError as error:
            if self._is_out_of_memory(error):
                return False
            raise
        return super()._captures(rows)


def open_session(model: OnnxFile, device: int) -> Any:
    """A network in a session on a GPU that takes and returns arrays in the host's memory.

    Beside its weights it keeps what runs take, up to a run that asks for shrinkage.

    Args:
        model: Its ONNX file.
        device: Which GPU.

    Raises:
        ProviderError: If the execution provider is missing. Nothing falls back to the CPU.
        BundleError: If the network does not load.
        DenoiserError: If the GPU has no memory for it.
        CudaError: If there is no driver or it is too old.
    """
    _require([CUDA])
    context = cuda.open(device)
    before = context.memory[0]
    session = _open(model, [(CUDA, {"device_id": str(device), **_EXACT})])
    free = context.memory[0]
    logger.info(
        "%s on GPU %d: about %.1f MiB, %.1f MiB are free", model.path, device, (before - free) / 2**20, free / 2**20
    )
    if on_cpu := _nodes_on_cpu(session):
        logger.warning("%s: on the CPU, each run: %s", model.path, on_cpu)
    return session


def _refuse_ours(options: Mapping[str, str] | None) -> None:
    taken = _OURS & set(options or {})
    if taken:
        raise ValueError(f"options must leave {', '.join(sorted(_OURS))} alone, got {', '.join(sorted(taken))}")


def _profile(info: ModelInfo, max_rows: int) -> dict[str, str]:
    """Given these bounds TensorRT builds one engine for all row counts, when the session is made."""
    rows = {SAMPLE: info.shape, TIMESTEP: (), **{name: spec.shape for name, spec in info.cond.items()}}

    def shapes(count: int) -> str:
        return ",".join(f"{name}:{'x'.join(map(str, (count, *shape)))}" for name, shape in rows.items())

    return {
        "trt_profile_min_shapes": shapes(1),
        "trt_profile_opt_shapes": shapes(max_rows),
        "trt_profile_max_shapes": shapes(max_rows),
    }


def _require(wanted: list[str]) -> None:
    available = available_providers()
    missing = [name for name in wanted if name not in available]
    if missing:
        raise ProviderError(
            f"ONNX Runtime must have {', '.join(missing)}, it has {', '.join(available)}: 'pip uninstall onnxruntime'"
            " and 'pip install onnxruntime-gpu[cuda,cudnn]' (never both)"
        )


def _open(model: OnnxFile, providers: list[tuple[str, dict[str, str]]]) -> Any:
    preload_libraries()
    options = session_options({"session.record_ep_graph_assignment_info": "1"})
    try:
        session = session_of(model, options, providers)
    except BundleError as error:
        if is_out_of_memory(error, _OUT_OF_MEMORY):
            raise DenoiserError(f"the GPU has no memory for {model.path}: {error}") from error
        raise
    names = [name for name, _ in providers]
    got = session.get_providers()
    left_out = [name for name in names if name not in got]
    if left_out:
        raise ProviderError(
            f"ONNX Runtime has {', '.join(left_out)} but could not load it, and would run on {', '.join(got)}: the CUDA"
            f"{', cuDNN and TensorRT' if TENSORRT in names else ' and cuDNN'} libraries that this onnxruntime-gpu was"
            " built for must be found (its log says which is not): pip install 'onnxruntime-gpu[cuda,cudnn]'"
            f"{' tensorrt' if TENSORRT in names else ''}, or set LD_LIBRARY_PATH"
        )
    return session


def _nodes_on_cpu(session: Any) -> str:
    """Kinds of the nodes that no GPU runs, with their counts; empty if none, or ONNX Runtime does not say."""
    assigned = getattr(session, "get_provider_graph_assignment_info", None)  # since 1.24
    if assigned is None:
        return ""
    kinds = Counter(node.op_type for part in assigned() if part.ep_name == CPU for node in part.get_nodes())
    return ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
