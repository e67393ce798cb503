"""How an engine is made: from a bundle, a Python function or a torch module."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

from stepfuse.backends.base import Denoiser, Place, on_host
from stepfuse.backends.buffers import Buffers
from stepfuse.backends.cuda.config import Cuda, device_of
from stepfuse.backends.host.callable import DenoiserFunction, FunctionDenoiser
from stepfuse.bundle.bundle import Bundle
from stepfuse.bundle.cond_input import CondInput
from stepfuse.bundle.model_info import ModelInfo
from stepfuse.samplers.schedule import NoiseSchedule
from stepfuse.serving.config import Serving

Made = TypeVar("Made", bound="Constructors")

#: Most rows of a forward on a GPU where nobody says: each row count is captured.
GPU_ROWS = 16


class Constructors:
    """The class methods that make an ``Engine``."""

    @abstractmethod
    def __init__(self, info: ModelInfo, place: Place, serving: Serving) -> None:
        """An engine for a network in its place."""

    @classmethod
    def load(
        cls: type[Made],
        name_or_path: str | os.PathLike[str] | Bundle,
        *,
        device: str | Cuda = "cpu",
        shape: tuple[int, ...] | None = None,
        max_rows: int | None = None,
        deterministic: bool | None = None,
        serving: Serving | None = None,
        threads: int = 0,
        spinning: bool = True,
        verify: bool = True,
        session: Any = None,
    ) -> Made:
        """Loads an embedded model by name or a bundle by path.

        Args:
            name_or_path: Such as ``"fashion"``, a folder with a ``manifest.json``, or a bundle that is loaded already.
            device: ``cpu``, ``cuda``, ``cuda:1``, or a ``Cuda`` that says how the network runs there.
            shape: Shape of one sample, where the network draws more sizes than the manifest's; None is the manifest's.
            max_rows: Most rows of one forward; a guided sample takes two. More samples than fit take turns. On a GPU 16
                unless said otherwise, and fewer, with a warning, if memory does not suffice.
            deterministic: Whether forwards are padded to ``max_rows`` rows, so that an image is the same to the bit
                whatever shares them. By default its last bits may differ with the number of rows, as the network
                library computes each number of rows in its own way.
            serving: More of how requests share the engine; ``max_rows`` and ``deterministic`` change what it says.
            threads: ONNX Runtime's threads inside an operator on the CPU; 0 is its own choice, a thread a core.
            spinning: Whether its idle threads wait actively: lowest latency, but a busy core.
            verify: Whether checksums are compared; False trusts the files' sizes, which spares reading huge ones twice.
            session: The network in ONNX Runtime on the CPU, of ``stepfuse.backends.host.onnxruntime.open_session``, for
                engines of several shapes to share one; ``threads`` and ``spinning`` are then its own. None opens one.

        Raises:
            BundleError: If the bundle cannot be used, or its network not with this shape; the message names file, rule
                and value.
            ValueError: If an argument is out of bounds.
            CudaError: If there is no driver or it is too old.
            KernelError: If there is no compiled step for the GPU.
            CaptureError: If the network cannot be captured, and the device says that it must.
            DenoiserError: If the library that is to run the network on the GPU cannot.
        """
        if threads < 0:
            raise ValueError(f"threads must be at least 0, got {threads}")
        gpu = device_of(device)
        bundle = name_or_path if isinstance(name_or_path, Bundle) else Bundle.load(name_or_path, verify=verify)
        info = bundle.info if shape is None else replace(bundle.info, shape=tuple(shape))
        if gpu is not None:
            from stepfuse.backends.cuda.networks import open_network

            serving = _serving(serving, max_rows, deterministic, default_rows=GPU_ROWS)
            network = open_network(
                bundle, info, device=gpu.index, backend=gpu.backend, max_rows=serving.max_rows, options=gpu.options
            )
            return cls._on_gpu(info, network, gpu, serving)

        from stepfuse.backends.host.onnxruntime import OnnxRuntimeDenoiser, open_session

        if session is None:
            session = open_session(bundle.denoiser, threads=threads, spinning=spinning)

        def make(buffers: Buffers) -> Denoiser:
            return OnnxRuntimeDenoiser(session, bundle.denoiser, buffers)

        return cls(info, on_host(make), _serving(serving, max_rows, deterministic))

    @classmethod
    def from_callable(
        cls: type[Made],
        fn: DenoiserFunction,
        *,
        shape: tuple[int, ...],
        schedule: NoiseSchedule,
        prediction_type: str = "epsilon",
        cond: Mapping[str, CondInput] | None = None,
        timestep_dtype: str = "float32",
        data_range: tuple[float, float] | None = None,
        max_rows: int | None = None,
        deterministic: bool | None = None,
        serving: Serving | None = None,
    ) -> Made:
        """Makes any Python function the network.

        Args:
            fn: ``fn(x (R, *shape) float32, t (R,), {name: (R, ...)}) -> prediction (R, *shape)``, a row a pass. It is
                called on the engine's own thread: what is set for a thread, such as torch.no_grad(), is set inside it.
            shape: Shape of one sample, without the batch.
            schedule: Noise levels that ``fn`` was made for.
            prediction_type: ``epsilon``, ``v_prediction``, ``sample``, or ``flow`` with a flow schedule.
            cond: Conditioning inputs by name; without them the dict that ``fn`` gets is empty.
            timestep_dtype: ``float32``, or ``int64`` to have timesteps rounded.
            data_range: Least and greatest value of its samples, to which images given are held; None: unknown.
            max_rows: Most rows of one call.
            deterministic: As in ``load``.
            serving: As in ``load``.

        Raises:
            ValueError: If a bound is broken; the message carries the value received.
        """
        info = _info(shape, schedule, prediction_type, cond, timestep_dtype, data_range)
        place = on_host(lambda buffers: FunctionDenoiser(fn, buffers))
        return cls(info, place, _serving(serving, max_rows, deterministic))

    @classmethod
    def from_torch(
        cls: type[Made],
        module: Any,
        *,
        shape: tuple[int, ...],
        schedule: NoiseSchedule,
        prediction_type: str = "epsilon",
        cond: Mapping[str, CondInput] | None = None,
        timestep_dtype: str = "float32",
        data_range: tuple[float, float] | None = None,
        device: Cuda | None = None,
        max_rows: int | None = None,
        deterministic: bool | None = None,
        serving: Serving | None = None,
    ) -> Made:
        """Makes a torch module the network that is on a GPU, in evaluation mode and in the dtype that it is to run in.

        Its forwards are captured as CUDA graphs, so it may neither wait for the device nor change what it reads but in
        place. It may be compiled (``torch.compile``, without graphs of its own).

        Args:
            module: ``module(sample (R, *shape), timestep (R,), **cond)`` to the prediction, or a tuple of which that is
                the first. Floating-point inputs but the timestep have the dtype of its parameters.
            shape: Shape of one sample, without the batch.
            schedule: Noise levels that it was trained with.
            prediction_type: As in ``from_callable``.
            cond: Conditioning inputs by name.
            timestep_dtype: ``float32``, or ``int64`` to have timesteps rounded.
            data_range: As in ``from_callable``.
            device: How it is captured; the GPU is the module's own.
            max_rows: Most rows of one forward; 16 unless said otherwise, and fewer, with a warning, if memory does not
                suffice.
            deterministic: As in ``load``.
            serving: As in ``load``.

        Raises:
            ImportError: If torch is missing.
            ValueError: If a bound is broken, or the module is not on one GPU.
            TypeError: If it computes in a type that the step has no kernel for.
            CaptureError: If it cannot be captured, and ``device`` says that it must.
            CudaError: If there is no driver or it is too old.
            KernelError: If there is no compiled step for the GPU.
        """
        try:
            from stepfuse.backends.cuda.torch import TorchNetwork
        except ModuleNotFoundError as error:
            raise ImportError(f"a torch module needs {error.name}: pip install 'stepfuse[kernels]'") from error
        info = _info(shape, schedule, prediction_type, cond, timestep_dtype, data_range)
        serving = _serving(serving, max_rows, deterministic, default_rows=GPU_ROWS)
        return cls._on_gpu(info, TorchNetwork(module, info, serving.max_rows), device or Cuda(), serving)

    @classmethod
    def _on_gpu(cls: type[Made], info: ModelInfo, network: Any, device: Cuda, serving: Serving) -> Made:
        from stepfuse.backends.cuda.loop import captured, kernels_for, on_gpu

        serving = captured(info, network, device, serving)
        return cls(info, on_gpu(network, kernels_for(network, device.cubins)), serving)


def _info(
    shape: tuple[int, ...],
    schedule: NoiseSchedule,
    prediction_type: str,
    cond: Mapping[str, CondInput] | None,
    timestep_dtype: str,
    data_range: tuple[float, float] | None,
) -> ModelInfo:
    return ModelInfo(
        tuple(shape),
        schedule,
        prediction_type,
        dict(cond or {}),
        timestep_dtype,
        data_range or (-1.0, 1.0),
        range_known=data_range is not None,
    )


def _serving(
    serving: Serving | None, max_rows: int | None, deterministic: bool | None, default_rows: int | None = None
) -> Serving:
    if serving is None:
        serving, max_rows = Serving(), default_rows if max_rows is None else max_rows
    changes: dict[str, Any] = {"max_rows": max_rows, "deterministic": deterministic}
    return replace(serving, **{name: value for name, value in changes.items() if value is not None})
