"""What predicts for a compiled pipeline: its own torch module, or a bundle that was exported from it."""

from __future__ import annotations

import os
import warnings
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from stepfuse.backends.host.callable import CallableBackend
from stepfuse.bundle.bundle import DENOISER, Bundle
from stepfuse.bundle.cond_input import CondInput
from stepfuse.bundle.model_info import ModelInfo
from stepfuse.integrations.diffusers.batches import Batch, HostBatch, Start
from stepfuse.integrations.diffusers.device_batch import DeviceBatch
from stepfuse.integrations.diffusers.fingerprint import fingerprint
from stepfuse.integrations.diffusers.network_graphs import NetworkGraphs
from stepfuse.integrations.diffusers.network_inputs import NetworkInputs
from stepfuse.integrations.diffusers.placement import runs_on_gpu
from stepfuse.integrations.diffusers.stepwise import InlineService
from stepfuse.integrations.scheduler_config import SchedulerSettings

if TYPE_CHECKING:
    from stepfuse.backends.host.onnxruntime import OnnxRuntimeBackend

Array = npt.NDArray[Any]
Conditioning = dict[str, Array]

_KEPT_SERVICES = 4  # of different sizes and batches


class Predictor(Protocol):
    """What predicts, and so decides where the states of a call lie and step."""

    def prepare(self, pipe: Any, network: str | None, arguments: Mapping[str, Any]) -> None:
        """Prepares a call, before anything of it is done.

        Args:
            pipe: The pipeline.
            network: Name of the component that predicts; None: it has none.
            arguments: Those of the call.

        Raises:
            ValueError: If the network cannot run where it is.
            ModuleNotFoundError: If a package is missing that steps states there.
        """

    def begin(self, start: Start) -> Batch:
        """States that are stepped with its predictions.

        Raises:
            ValueError: If the network predicts something else than the scheduler takes, or has other conditioning.
        """

    def release(self) -> None:
        """Drops the references to module and inputs."""


class ModulePredictor:
    """The pipeline's module, on its device, in its precision.

    On a GPU states step there too, and its calls become CUDA graphs. Elsewhere they step in the host's memory, by the
    engine's loop: a sample's conditioning is then the number of a row of the inputs that the pipeline passed.

    Attributes:
        is_on_gpu: Whether the pipeline of this call runs on a GPU.
    """

    def __init__(self) -> None:
        self.is_on_gpu = False
        self._network = ""
        self._graphs: defaultdict[str, NetworkGraphs] = defaultdict(NetworkGraphs)  # by the component's name
        self._followed: set[str] = set()
        self._may_change = False
        self._services = _ServiceCache(self._open)
        self._start: Start | None = None
        self._error: BaseException | None = None

    def prepare(self, pipe: Any, network: str | None, arguments: Mapping[str, Any]) -> None:
        """As in ``Predictor``."""
        self.is_on_gpu = runs_on_gpu(pipe, network)
        self._network, self._may_change = network or "", _has_callbacks(arguments)
        self._followed.clear()

    def run(self, name: str, module: Any, args: Sequence[Any], kwargs: Mapping[str, Any], *, owned: bool) -> Any:
        """What a network on a GPU returns.

        Args:
            name: Name of the component that it is.
            module: The network.
            args: Its positional arguments.
            kwargs: Its keyword arguments.
            owned: As in ``NetworkGraphs``.
        """
        if self._may_change or name not in self._followed:
            self._graphs[name].follow(module)
            self._followed.add(name)
        return self._graphs[name](module, args, kwargs, owned=owned)

    def begin(self, start: Start) -> Batch:
        """As in ``Predictor``."""
        self._start, self._error = start, None
        if self.is_on_gpu:
            return DeviceBatch(start, self._on_device)
        _warn_of_host_memory(start.states.device)
        service = self._services.get(tuple(start.states.shape[1:]), start.inputs.rows, start.settings)
        named = {"cond": start.cond, "negative_cond": start.uncond}
        return HostBatch(start, service, {name: {"row": rows} for name, rows in named.items() if rows is not None})

    def release(self) -> None:
        """As in ``Predictor``."""
        for graphs in self._graphs.values():
            graphs.release()
        self._start = self._error = None

    def _open(self, shape: tuple[int, ...], rows: int, settings: SchedulerSettings) -> InlineService:
        row = {"row": CondInput(dtype="int64", null=-1)}
        info = ModelInfo(shape, settings.schedule, settings.prediction_type, row)
        return InlineService(info, CallableBackend(self._on_host, info, rows), rows)

    def _on_device(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        start = self._start
        assert start is not None
        args, kwargs = start.inputs.arguments(x, t)
        return _prediction(self.run(self._network, start.module, args, kwargs, owned=False), start.chunks)

    def _on_host(self, x: Array, t: Array, cond: Mapping[str, Array]) -> Array:
        if self._error is not None:  # the loop retries each sample alone, but these must step together
            raise self._error
        try:
            return self._forward(torch.from_numpy(x), torch.from_numpy(t), torch.from_numpy(cond["row"]))
        except BaseException as error:
            self._error = error
            raise

    def _forward(self, x: torch.Tensor, t: torch.Tensor, index: torch.Tensor) -> Array:
        start = self._start
        assert start is not None
        inputs = start.inputs
        if not inputs.takes_any_timestep:
            t = t.round().long()
        order = torch.argsort(index)  # the pipeline's own, in which alone some conditioning belongs to its rows
        args, kwargs = inputs.arguments(x[order].to(inputs.sample), t[order].to(inputs.sample.device), index[order])
        prediction = _prediction(start.module(*args, **kwargs), start.chunks)
        values: Array = prediction.float().cpu()[torch.argsort(order)].numpy()
        return values


class BundlePredictor:
    """A bundle's denoiser in ONNX Runtime. Its conditioning inputs have the names of the pipeline's arguments.

    Args:
        path: A bundle that was exported from the pipeline.
        module: The pipeline's module, whose weights the bundle has.

    Raises:
        ValueError: If the module has adapters.
        BundleError: If the bundle cannot be used.
    """

    def __init__(self, path: str | os.PathLike[str], module: torch.nn.Module) -> None:
        from stepfuse.backends.host.onnxruntime import open_session

        self._bundle = Bundle.load(path)
        if adapters := getattr(module, "peft_config", None):
            raise ValueError(
                f"{type(module).__name__} must be without adapters beside a bundle, got {', '.join(adapters)}: put them"
                f" into the bundle with 'stepfuse lora {path} LORA' and unload them, or compile without bundle="
            )
        self._module = fingerprint(module)
        self._session = open_session(self._bundle.networks[DENOISER])
        self._services = _ServiceCache(self._open)
        self._direct: tuple[tuple[int, ...], OnnxRuntimeBackend] | None = None

    def prepare(self, pipe: Any, network: str | None, arguments: Mapping[str, Any]) -> None:
        """Does nothing: the pipeline's network does not run."""

    def begin(self, start: Start) -> Batch:
        """As in ``Predictor``.

        Raises:
            ValueError: Also if the bundle's prediction type is not the scheduler's, or as of ``require``.
        """
        self.require(start.module, start.inputs)
        self.require_prediction(start.settings)
        service = self._services.get(tuple(start.states.shape[1:]), start.inputs.rows, start.settings)
        named = {"cond": start.cond, "negative_cond": start.uncond}
        conditioning = {name: self.conditioning(start.inputs, rows) for name, rows in named.items() if rows is not None}
        return HostBatch(start, service, conditioning)

    def require_prediction(self, settings: SchedulerSettings) -> None:
        """Raises ValueError if the bundle's prediction type is not the scheduler's."""
        predicts = self._bundle.info.prediction_type
        if predicts != settings.prediction_type:
            raise ValueError(
                f"the bundle's prediction_type must be the scheduler's, {settings.prediction_type!r}, got {predicts!r}"
            )

    def predict(self, module: Any, inputs: NetworkInputs) -> Array:
        """The prediction for the inputs that a pipeline calls its module with, shape (rows, *shape) float32.

        Raises:
            ValueError: As of ``require`` and ``conditioning``.
            BundleError: If samples of this size, or conditioning of this shape, are not the bundle's.
            DenoiserError: If ONNX Runtime cannot.
        """
        self.require(module, inputs)
        size = tuple(inputs.sample.shape)
        if self._direct is None or self._direct[0] != size:
            self._direct = size, self._backend(size[1:], size[0], self._bundle.info)
        backend = self._direct[1]
        timestep = torch.as_tensor(inputs.timestep).reshape(-1)
        np.copyto(backend.buffers.sample, _as_numpy(inputs.sample))
        backend.buffers.timestep[...] = _as_numpy(timestep)
        for name, values in self.conditioning(inputs, np.arange(inputs.rows)).items():
            np.copyto(backend.buffers.cond[name], values)
        backend.forward(inputs.rows)
        return np.array(backend.buffers.prediction)

    def require(self, module: Any, inputs: NetworkInputs) -> None:
        """Requests carry all of the conditioning; what else would act on the module is refused.

        Raises:
            ValueError: If the module is not as ``compile`` found it, or the pipeline passes it more than conditioning.
        """
        _warn_of_host_memory(inputs.sample.device)
        if fingerprint(module) != self._module:
            raise ValueError(
                f"weights and settings of {type(module).__name__} must be those that compile(pipe, bundle=...) found,"
                " got others, as by a LoRA loaded or fused since, or FreeU: put a LoRA into the bundle with 'stepfuse"
                f" lora {self._bundle.path} LORA', compile again without bundle=, or call pipe.original"
            )
        if others := inputs.unbatched():
            raise ValueError(
                f"the pipeline must pass nothing but conditioning to a bundle's network, got {', '.join(others)}:"
                " compile again without bundle=, or call pipe.original"
            )

    def conditioning(self, inputs: NetworkInputs, rows: npt.NDArray[np.int64]) -> Conditioning:
        """The conditioning of samples that have theirs from these rows of ``inputs``.

        Raises:
            ValueError: If the bundle has other conditioning inputs than the pipeline passes to its network.
        """
        passed, expected = inputs.conditioning(), self._bundle.info.cond
        if set(passed) != set(expected):
            raise ValueError(
                f"the bundle must take what the pipeline passes to its network, {', '.join(passed) or 'nothing'}, got"
                f" {', '.join(expected) or 'nothing'}"
            )
        return {name: _as_numpy(tensor)[rows] for name, tensor in passed.items()}

    def release(self) -> None:
        """Gives back the memory of ``predict``."""
        self._direct = None

    def _open(self, shape: tuple[int, ...], rows: int, settings: SchedulerSettings) -> InlineService:
        info = replace(self._bundle.info, schedule=settings.schedule)
        backend = self._backend(shape, rows, info)
        return InlineService(replace(info, shape=shape), backend, rows)

    def _backend(self, shape: tuple[int, ...], rows: int, info: ModelInfo) -> OnnxRuntimeBackend:
        from stepfuse.backends.host.onnxruntime import OnnxRuntimeBackend

        return OnnxRuntimeBackend(self._session, self._bundle.denoiser, replace(info, shape=shape), rows)


class _ServiceCache:
    """Keeps the services used last, and closes the others."""

    def __init__(self, make: Callable[[tuple[int, ...], int, SchedulerSettings], InlineService]) -> None:
        self._make = make
        self._kept: OrderedDict[tuple[Any, ...], tuple[SchedulerSettings, InlineService]] = OrderedDict()

    def get(self, shape: tuple[int, ...], rows: int, settings: SchedulerSettings) -> InlineService:
        key = shape, rows, id(settings)
        if key not in self._kept:
            # With its settings, so that no others can take their id.
            self._kept[key] = settings, self._make(shape, rows, settings)
        self._kept.move_to_end(key)
        while len(self._kept) > _KEPT_SERVICES:
            _, (_, oldest) = self._kept.popitem(last=False)
            oldest.close()
        return self._kept[key][1]


def _as_numpy(tensor: torch.Tensor) -> Array:
    values: Array = (tensor.float() if tensor.is_floating_point() else tensor).cpu().numpy()
    return values


def _has_callbacks(arguments: Mapping[str, Any]) -> bool:
    """Whether a call has its caller's code run between its steps."""
    return any(_has_callbacks(value) if isinstance(value, dict) else callable(value) for value in arguments.values())


def _prediction(returned: Any, chunks: int) -> torch.Tensor:
    """The prediction of what a network returns, without the variance that it may have learned."""
    prediction: torch.Tensor = returned[0]
    return prediction if chunks == 1 else prediction.chunk(chunks, dim=1)[0]


def _warn_of_host_memory(device: torch.device) -> None:
    if device.type != "cpu":
        warnings.warn(
            f"the pipeline is on {device}, and states, inputs and predictions go through host memory at every step",
            stacklevel=2,
        )
