"""Who draws for a pipeline: the torch module itself, or a bundle that was exported from it."""

from __future__ import annotations

import os
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from stepfuse.backends.host.callable import CallableBackend
from stepfuse.bundle.bundle import Bundle
from stepfuse.bundle.cond_input import CondInput
from stepfuse.bundle.model_info import ModelInfo
from stepfuse.integrations.diffusers.run import CallersThread
from stepfuse.integrations.diffusers.stand_in import Told
from stepfuse.integrations.scheduler_config import SchedulerSettings

Array = npt.NDArray[Any]
Conditions = dict[str, Array]

_KEPT = 4  # of different sizes and batches


class TorchNetwork:
    """A torch module on the engine's rows. What it is told is what the pipeline told its stand-in, row for row.

    The module stays on its device, in its precision; on a GPU states and predictions go through host memory.
    """

    def __init__(self) -> None:
        self._services = _Services(self._open)
        self._module: Any = None
        self._told: Told | None = None
        self._halves = 1
        self._error: BaseException | None = None

    def service(self, shape: tuple[int, ...], rows: int, settings: SchedulerSettings) -> CallersThread:
        """What draws samples of this shape, at most ``rows`` rows a forward."""
        return self._services.get(shape, rows, settings)

    def tell(self, module: Any, told: Told, halves: int) -> None:
        """What the next run's rows mean.

        Args:
            module: Predicts.
            told: Its inputs.
            halves: How many times its output has the sample's channels; what follows the first is left aside.
        """
        if told.sample.is_cuda:
            _warn_of_host_memory(str(told.sample.device))
        self._module, self._told, self._halves, self._error = module, told, halves, None

    def conditions(self, told: Told, which: npt.NDArray[np.int64]) -> Conditions:
        """What samples are told that are told these rows."""
        return {"row": which}

    def forget(self) -> None:
        """Lets go of the module and its inputs."""
        self._module = self._told = self._error = None

    def _open(self, shape: tuple[int, ...], rows: int, settings: SchedulerSettings) -> CallersThread:
        row = {"row": CondInput(dtype="int64", null=-1)}
        info = ModelInfo(shape, settings.schedule, settings.prediction_type, row)
        return CallersThread(info, CallableBackend(self._predict, info, rows), rows)

    def _predict(self, x: Array, t: Array, cond: Mapping[str, Array]) -> Array:
        if self._error is not None:  # the loop tries each sample alone, but they must step together
            raise self._error
        try:
            return self._forward(torch.from_numpy(x), torch.from_numpy(t), torch.from_numpy(cond["row"]))
        except BaseException as error:
            self._error = error
            raise

    def _forward(self, x: torch.Tensor, t: torch.Tensor, index: torch.Tensor) -> Array:
        told = self._told
        assert told is not None
        if not (isinstance(told.timestep, torch.Tensor) and told.timestep.is_floating_point()):
            t = t.round().long()
        args, kwargs = told.arguments(x.to(told.sample), t.to(told.sample.device), index)
        prediction = self._module(*args, **kwargs)[0]
        if self._halves > 1:
            prediction = prediction.chunk(self._halves, dim=1)[0]
        values: Array = prediction.float().cpu().numpy()
        return values


class BundleNetwork:
    """A bundle's denoiser in ONNX Runtime. What it is told is found by the names of its conditioning inputs.

    Args:
        path: A bundle that was exported from the pipeline.

    Raises:
        BundleError: If it cannot be used.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        from stepfuse.backends.host.onnxruntime import open_session

        self._bundle = Bundle.load(path)
        self._session = open_session(self._bundle.denoiser)
        self._services = _Services(self._open)

    def service(self, shape: tuple[int, ...], rows: int, settings: SchedulerSettings) -> CallersThread:
        """As of a torch network.

        Raises:
            ValueError: If the bundle predicts something else than the scheduler takes.
        """
        predicts = self._bundle.info.prediction_type
        if predicts != settings.prediction_type:
            raise ValueError(
                f"the bundle's prediction_type must be the scheduler's, {settings.prediction_type!r}, got {predicts!r}"
            )
        return self._services.get(shape, rows, settings)

    def tell(self, module: Any, told: Told, halves: int) -> None:
        """Nothing: all it is told are conditions."""

    def conditions(self, told: Told, which: npt.NDArray[np.int64]) -> Conditions:
        """The values of these rows, by name."""
        named, inputs = told.named(), self._bundle.info.cond
        if set(named) != set(inputs):
            raise ValueError(
                f"the bundle must take what the pipeline tells its network, {', '.join(named) or 'nothing'}, got"
                f" {', '.join(inputs) or 'nothing'}"
            )
        return {name: _as_numpy(leaf)[which] for name, leaf in named.items()}

    def forget(self) -> None:
        """Nothing is held."""

    def _open(self, shape: tuple[int, ...], rows: int, settings: SchedulerSettings) -> CallersThread:
        from stepfuse.backends.host.onnxruntime import OnnxRuntimeBackend

        info = replace(self._bundle.info, shape=shape, schedule=settings.schedule)
        backend = OnnxRuntimeBackend(self._session, self._bundle.denoiser, info, rows)
        return CallersThread(info, backend, rows)


class _Services:
    """Those used last; what falls out is closed."""

    def __init__(self, make: Callable[[tuple[int, ...], int, SchedulerSettings], CallersThread]) -> None:
        self._make = make
        self._kept: OrderedDict[tuple[Any, ...], tuple[SchedulerSettings, CallersThread]] = OrderedDict()

    def get(self, shape: tuple[int, ...], rows: int, settings: SchedulerSettings) -> CallersThread:
        key = shape, rows, id(settings)
        if key not in self._kept:
            self._kept[key] = settings, self._make(shape, rows, settings)  # its settings, so that their id stays theirs
        self._kept.move_to_end(key)
        while len(self._kept) > _KEPT:
            _, (_, oldest) = self._kept.popitem(last=False)
            oldest.close()
        return self._kept[key][1]


def _as_numpy(tensor: torch.Tensor) -> Array:
    values: Array = (tensor.float() if tensor.is_floating_point() else tensor).cpu().numpy()
    return values


def _warn_of_host_memory(device: str) -> None:
    warnings.warn(
        f"the network stays on {device}, and its inputs and predictions go through host memory at every step",
        stacklevel=2,
    )
