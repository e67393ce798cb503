"""Engines for a pipeline's network: the torch module itself, or a bundle that was exported from it."""

from __future__ import annotations

import os
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from stepfuse.bundle import Bundle
from stepfuse.cond import CondInput
from stepfuse.engine import Engine
from stepfuse.integrations.compile_standin import Told
from stepfuse.integrations.scheduler_config import SchedulerSettings

Array = npt.NDArray[Any]
Conditions = dict[str, Array]

_KEPT = 4  # engines of different sizes and batches


class TorchNetwork:
    """A torch module on the engine's rows. What it is told is what the pipeline told its stand-in, row for row.

    The module stays on its device, in its precision; on a GPU states and predictions go through host memory.
    """

    def __init__(self) -> None:
        self._engines = _Engines(self._open)
        self._module: Any = None
        self._told: Told | None = None
        self._halves = 1
        self.error: BaseException | None = None

    def engine(self, shape: tuple[int, ...], rows: int, settings: SchedulerSettings) -> Engine:
        """The engine for samples of this shape, at most ``rows`` rows a forward."""
        return self._engines.get(shape, rows, settings)

    def tell(self, module: Any, told: Told, halves: int) -> None:
        """What the next run's rows mean.

        Args:
            module: Predicts.
            told: Its inputs.
            halves: How many times its output has the sample's channels; what follows the first is left aside.
        """
        if torch.cuda.is_available() and told.sample.is_cuda:
            _warn_of_host_memory(str(told.sample.device))
        self._module, self._told, self._halves, self.error = module, told, halves, None

    def conditions(self, told: Told, which: npt.NDArray[np.int64]) -> Conditions:
        """What samples are told that are told these rows."""
        return {"row": which}

    def forget(self) -> None:
        """Lets go of the module and its inputs."""
        self._module = self._told = None

    def _open(self, shape: tuple[int, ...], rows: int, settings: SchedulerSettings) -> Engine:
        return Engine.from_callable(
            self._predict,
            shape=shape,
            schedule=settings.schedule,
            prediction_type=settings.prediction_type,
            cond={"row": CondInput(dtype="int64", null=-1)},
            max_rows=rows,
        )

    def _predict(self, x: Array, t: Array, cond: Mapping[str, Array]) -> Array:
        try:
            assert self._told is not None
            with torch.no_grad(), self._told.autocast:
                return self._forward(
                    self._told, torch.from_numpy(x), torch.from_numpy(t), torch.from_numpy(cond["row"])
                )
        except BaseException as error:
            self.error = error  # the loop would try each row alone
            raise

    def _forward(self, told: Told, x: torch.Tensor, t: torch.Tensor, index: torch.Tensor) -> Array:
        like = told.timestep
        if not (isinstance(like, torch.Tensor) and like.is_floating_point()):
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

    error: BaseException | None = None

    def __init__(self, path: str | os.PathLike[str]) -> None:
        from stepfuse.backends.onnxruntime import open_session

        self._bundle = Bundle.load(path)
        self._session = open_session(self._bundle.denoiser)
        self._engines = _Engines(self._open)

    def engine(self, shape: tuple[int, ...], rows: int, settings: SchedulerSettings) -> Engine:
        """As of a torch network.

        Raises:
            ValueError: If the bundle predicts something else than the scheduler takes.
        """
        predicts = self._bundle.info.prediction_type
        if predicts != settings.prediction_type:
            raise ValueError(
                f"the bundle's prediction_type must be the scheduler's, {settings.prediction_type!r}, got {predicts!r}"
            )
        return self._engines.get(shape, rows, settings)

    def tell(self, module: Any, told: Told, halves: int) -> None:
        """Nothing: all it is told are conditions."""

    def conditions(self, told: Told, which: npt.NDArray[np.int64]) -> Conditions:
        """The values of these rows, by name."""
        named, inputs = told.named(), self._bundle.info.cond
        if set(named) != set(inputs):
            raise ValueError(
                f"the bundle must take what the pipeline tells its network, {', '.join(named)}, got"
                f" {', '.join(inputs) or 'nothing'}"
            )
        floats = {name: spec.dtype.startswith("float") for name, spec in inputs.items()}
        return {name: (leaf.float() if floats[name] else leaf).cpu().numpy()[which] for name, leaf in named.items()}

    def forget(self) -> None:
        """Nothing is held."""

    def _open(self, shape: tuple[int, ...], rows: int, settings: SchedulerSettings) -> Engine:
        return Engine.load(self._bundle, shape=shape, max_rows=rows, session=self._session)


class _Engines:
    """The engines used last; what falls out is closed."""

    def __init__(self, open_engine: Callable[[tuple[int, ...], int, SchedulerSettings], Engine]) -> None:
        self._open = open_engine
        self._engines: OrderedDict[tuple[Any, ...], tuple[SchedulerSettings, Engine]] = OrderedDict()

    def get(self, shape: tuple[int, ...], rows: int, settings: SchedulerSettings) -> Engine:
        key = shape, rows, id(settings)
        if key not in self._engines:
            self._engines[key] = settings, self._open(shape, rows, settings)  # settings too: its id must stay its own
        self._engines.move_to_end(key)
        while len(self._engines) > _KEPT:
            _, (_, oldest) = self._engines.popitem(last=False)
            oldest.close()
        return self._engines[key][1]


def _warn_of_host_memory(device: str) -> None:
    warnings.warn(
        f"the network stays on {device}, and its inputs and predictions go through host memory at every step",
        stacklevel=2,
    )
