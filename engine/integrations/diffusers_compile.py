"""One line that has a diffusers pipeline's loop run by the engine."""

from __future__ import annotations

import inspect
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.utils.torch_utils import randn_tensor

from stepfuse.integrations.compile_network import BundleNetwork, TorchNetwork
from stepfuse.integrations.compile_run import Run, States
from stepfuse.integrations.compile_standin import NetworkStandIn, SchedulerStandIn, Told
from stepfuse.integrations.compile_table import begun, settings_of, table_of


@dataclass(frozen=True)
class _Family:
    """What pipelines of one kind do alike.

    Attributes:
        network: The component that predicts.
        told_first: Whether the rows with the condition come before those without.
        doubled: Whether the scheduler steps both of these.
    """

    network: str = "unet"
    told_first: bool = False
    doubled: bool = False


_FAMILIES: Mapping[str, _Family] = {
    "DDPMPipeline": _Family(),
    "DDIMPipeline": _Family(),
    "DiTPipeline": _Family("transformer", told_first=True, doubled=True),
    "StableDiffusionPipeline": _Family(),
    "StableDiffusionImg2ImgPipeline": _Family(),
    "StableDiffusionXLPipeline": _Family(),
    "StableDiffusionXLImg2ImgPipeline": _Family(),
    "StableDiffusion3Pipeline": _Family("transformer"),
    "StableDiffusion3Img2ImgPipeline": _Family("transformer"),
}


def compile(pipe: Any, *, bundle: str | os.PathLike[str] | None = None) -> Any:
    """The same pipeline with its denoising loop run by the engine.

    Its call takes and returns what it did: the pipeline's own code checks, encodes, noises, calls back and decodes; one
    fused step takes the place of the copies, the guidance and the scheduler's step between two forwards. The scheduler
    is read at each call, so that it may be changed or replaced; noise that its steps add is drawn from the call's
    generators as diffusers draws it. States are kept in float32, whatever the network's precision.

    Args:
        pipe: A pipeline of diffusers, of one of the classes that ``pipe`` is named after in the error that others get.
            It is left as it is; the result shares its components.
        bundle: A bundle that was exported from the pipeline: its denoiser, in ONNX Runtime, then predicts in place of
            the pipeline's module.

    Returns:
        An object of the pipeline's class. Its ``original`` is the same pipeline, stepped by diffusers. Calls from
        several threads take turns.

    Raises:
        ValueError: If the class is not covered. A call raises it where the scheduler is not covered, or something is
            asked for that only the pipeline's own loop does; the message says what.
        BundleError: If the bundle cannot be used.
    """
    if isinstance(pipe, _Compiled):
        pipe = pipe.original
    kind = type(pipe)
    if kind.__name__ not in _FAMILIES or not isinstance(pipe, DiffusionPipeline):
        raise ValueError(f"pipe must be one of {', '.join(_FAMILIES)}, got {kind.__name__}")

    @wraps(kind.__call__)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        with self._stepfuse.drawing(self, inspect.signature(kind.__call__).bind(self, *args, **kwargs)):
            return kind.__call__(self, *args, **kwargs)

    # Saved under its name, it is loaded as what it is.
    compiled_kind = type(kind.__name__, (_Compiled, kind), {"__call__": call, "__module__": kind.__module__})
    compiled: Any = object.__new__(compiled_kind)
    network = TorchNetwork() if bundle is None else BundleNetwork(bundle)
    compiled.__dict__.update(pipe.__dict__, _stepfuse=_State(_FAMILIES[kind.__name__], network))
    return compiled


class _Compiled:
    """What a compiled pipeline has beside its class's own."""

    @property
    def original(self) -> Any:
        """The pipeline with the same components, stepped by diffusers."""
        kind = type(self).__bases__[1]
        pipe: Any = object.__new__(kind)
        pipe.__dict__.update({name: value for name, value in self.__dict__.items() if name != "_stepfuse"})
        return pipe


class _State:
    """What a compiled pipeline keeps from call to call."""

    def __init__(self, family: _Family, network: TorchNetwork | BundleNetwork) -> None:
        self.family = family
        self.network = network
        self._lock = threading.RLock()
        self._drawing = False

    @contextmanager
    def drawing(self, pipe: Any, bound: inspect.BoundArguments) -> Iterator[None]:
        """Has the loop of the call within run by the engine."""
        with self._lock:
            if self._drawing:
                raise RuntimeError("a pipeline cannot be called from its own callback: compile another one for it")
            bound.apply_defaults()
            name = self.family.network
            components = {name: getattr(pipe, name), "scheduler": pipe.scheduler}
            settings_of(pipe.scheduler)  # refused before anything is encoded
            loop = _Loop(self, pipe, bound.arguments)
            pipe.__dict__.update({name: loop.network, "scheduler": loop.scheduler})  # not a change of its configuration
            self._drawing = True
            try:
                yield
            finally:
                self._drawing = False
                pipe.__dict__.update(components)
                loop.stop()


class _Loop:
    """The loop of one call."""

    def __init__(self, state: _State, pipe: Any, arguments: Mapping[str, Any]) -> None:
        self._state = state
        self._pipe = pipe
        self._arguments = arguments
        self._module, self._real = getattr(pipe, state.family.network), pipe.scheduler
        self.network = NetworkStandIn(self._module)
        self.scheduler = SchedulerStandIn(pipe.scheduler, self._step)
        self._row: int | None = None
        self._run: Run | None = None
        self._run_is: tuple[Any, ...] = ()
        self._after: tuple[torch.Tensor, int] | None = None

    def stop(self) -> None:
        """Ends the run, and lets go of what it was told."""
        if self._run is not None:
            self._run.stop()
        self._state.network.forget()

    def _step(
        self,
        timestep: Any,
        sample: torch.Tensor,
        *,
        eta: float = 0.0,
        use_clipped_model_output: bool | None = False,
        generator: Any = None,
        **options: Any,
    ) -> torch.Tensor:
        given = [name for name, value in options.items() if value]
        if given:
            raise ValueError(f"the scheduler's step must be left without {', '.join(given)}: call pipe.original")
        told = self.network.take()
        images = told.rows // 2 if self._state.family.doubled and self._scale() > 1 else len(sample)
        guided = told.rows > images
        self._row = self._first(timestep) if self._row is None else self._row + 1
        facts = (*self._guidance(guided), told.rows, float(eta or 0.0), bool(use_clipped_model_output))
        if self._run is None or self._run_is[:-1] != facts or self._run_is[-1] != told:
            self._begin(facts, told, sample[:images], guided)
        assert self._run is not None
        if self._changed(sample):
            self._run.x[...] = _states(sample[:images])
        self._run.step()
        self._add_noise(self._run.x, sample, generator, eta)
        after = torch.from_numpy(self._run.x.copy()).to(sample)
        after = torch.cat([after] * (len(sample) // images)) if len(sample) > images else after
        self._after = after, _version(after)
        return after

    def _begin(self, facts: tuple[Any, ...], told: Told, sample: torch.Tensor, guided: bool) -> None:
        scale, rescale, _, eta, clipped = facts
        table = table_of(
            self._real,
            self.scheduler.custom,
            guidance_scale=scale,
            guidance_rescale=rescale,
            eta=eta,
            clipped_eps=clipped,
        )
        if (table["s"] != 1).any() and not self.scheduler.scales:
            raise ValueError(
                f"{type(self._pipe).__name__} does not scale its network's inputs as {type(self._real).__name__} asks:"
                " take DDIMScheduler, DDPMScheduler, or another that does not"
            )
        if self._run is not None:
            if table.uses_history:
                raise ValueError(
                    f"guidance and prompts must stay as they are during a run of {type(self._real).__name__}, whose"
                    " steps build on the steps before: change them with another scheduler, or call pipe.original"
                )
            self._run.stop()
        assert self._row is not None
        table, self._noise = begun(table, self._row)
        self._begun_at = self._row
        network, images, rows = self._state.network, len(sample), np.arange(told.rows)
        halves = 2 if getattr(self._module.config, "out_channels", None) == 2 * sample.shape[1] else 1
        network.tell(self._module, told, halves)
        service = network.service(tuple(sample.shape[1:]), told.rows, settings_of(self._real))
        conditions: dict[str, Any] = {"cond": network.conditions(told, rows[:images])}
        if guided:
            first, second = (network.conditions(told, half) for half in (rows[:images], rows[images:]))
            cond, negative = (first, second) if self._state.family.told_first else (second, first)
            conditions = {"cond": cond, "negative_cond": negative}
        self._run = Run(service, service.requests(images, table, **conditions), _states(sample).copy())
        self._run_is = (*facts, told)

    def _first(self, timestep: Any) -> int:
        """The row that a run begins with: image-to-image leaves out the noisiest."""
        begin = getattr(self._real, "begin_index", None)
        if begin is not None:
            return int(begin)
        return int((self._real.timesteps.cpu() == torch.as_tensor(timestep).cpu()).nonzero()[0, 0])

    def _scale(self) -> float:
        return float(getattr(self._pipe, "guidance_scale", self._arguments.get("guidance_scale", 1.0)))

    def _guidance(self, guided: bool) -> tuple[float, float]:
        rescale = float(getattr(self._pipe, "guidance_rescale", 0.0) or 0.0)
        return (self._scale(), rescale) if guided else (1.0, 0.0)

    def _changed(self, sample: torch.Tensor) -> bool:
        """Whether a callback has changed what the last step returned."""
        after, version = self._after or (sample, _version(sample))
        return sample is not after or _version(sample) != version

    def _add_noise(self, x: States, sample: torch.Tensor, generator: Any, eta: float) -> None:
        """What the step adds, drawn as diffusers' schedulers draw it, also where they multiply it by 0."""
        assert self._row is not None
        scale = self._noise[self._row - self._begun_at]
        always = eta if type(self._real).__name__ == "DDIMScheduler" else self._noise.any()
        if scale or (always and type(self._real).__name__ in ("DDIMScheduler", "EulerAncestralDiscreteScheduler")):
            drawn = randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=sample.dtype)
            x += scale * _states(drawn[: len(x)])


def _states(sample: torch.Tensor) -> States:
    states: States = sample.detach().float().cpu().contiguous().numpy()
    return states


def _version(tensor: torch.Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
