"""One line that has a diffusers pipeline's loop run by the engine."""

from __future__ import annotations

import inspect
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any

from diffusers import DiffusionPipeline

from stepfuse.integrations.diffusers.loop import Family, Loop
from stepfuse.integrations.diffusers.network import BundleNetwork, TorchNetwork
from stepfuse.integrations.diffusers.table import settings_of

_FAMILIES: Mapping[str, Family] = {
    "DDPMPipeline": Family(),
    "DDIMPipeline": Family(),
    "DiTPipeline": Family("transformer", told_first=True, doubled=True),
    "StableDiffusionPipeline": Family(),
    "StableDiffusionImg2ImgPipeline": Family(),
    "StableDiffusionXLPipeline": Family(),
    "StableDiffusionXLImg2ImgPipeline": Family(),
    "StableDiffusion3Pipeline": Family("transformer"),
    "StableDiffusion3Img2ImgPipeline": Family("transformer"),
}


def compile(pipe: Any, *, bundle: str | os.PathLike[str] | None = None) -> Any:
    """The same pipeline with its denoising loop run by the engine.

    Its call takes and returns what it did: the pipeline's own code checks, encodes, noises, calls back and decodes; the
    fused step makes the network's inputs and takes the place of guidance and the scheduler's step. The scheduler is
    read at each call, so that it may be changed or replaced; noise that its steps add is drawn from the call's
    generators as diffusers draws it. States are kept in float32, whatever the network's precision.

    Args:
        pipe: A pipeline of diffusers: DDPM, DDIM, DiT, Stable Diffusion 1, 2, XL and 3, these also from image to image.
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

    def __init__(self, family: Family, network: TorchNetwork | BundleNetwork) -> None:
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
            loop = Loop(self.family, self.network, pipe, bound.arguments)
            pipe.__dict__.update({name: loop.network, "scheduler": loop.scheduler})  # not a change of its configuration
            self._drawing = True
            try:
                yield
            finally:
                self._drawing = False
                pipe.__dict__.update(components)
                loop.stop()
