"""``compile``: a diffusers pipeline whose denoising loop the engine runs."""

from __future__ import annotations

import inspect
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar, cast

from diffusers import DiffusionPipeline

from stepfuse.integrations.diffusers.loop import DenoisingLoop, PipelineFamily
from stepfuse.integrations.diffusers.predictors import BundlePredictor, ModulePredictor, Predictor
from stepfuse.integrations.diffusers.scheduler_table import settings_of

Pipeline = TypeVar("Pipeline")  # a diffusers pipeline's class

_FAMILIES: Mapping[str, PipelineFamily] = {
    "DDPMPipeline": PipelineFamily(),
    "DDIMPipeline": PipelineFamily(),
    "DiTPipeline": PipelineFamily("transformer", conditional_first=True, steps_both=True),
    "StableDiffusionPipeline": PipelineFamily(),
    "StableDiffusionImg2ImgPipeline": PipelineFamily(),
    "StableDiffusionXLPipeline": PipelineFamily(),
    "StableDiffusionXLImg2ImgPipeline": PipelineFamily(),
    "StableDiffusion3Pipeline": PipelineFamily("transformer"),
    "StableDiffusion3Img2ImgPipeline": PipelineFamily("transformer"),
}

# Classes whose noise is more than a step's own, which is added to the state, taken from a call's generators.
_NOISE_ELSEWHERE = {
    "DPMSolverSDEScheduler": "draws it from a Brownian path of its own",
    "SASolverScheduler": "keeps it for the next step",
}


def compile(pipe: Pipeline, *, bundle: str | os.PathLike[str] | None = None) -> Pipeline:
    """The same pipeline with its denoising loop run by the engine.

    Its call takes and returns the same as before: the pipeline's own code checks, encodes, noises, calls back and
    decodes; the fused step makes the network's inputs and takes the place of guidance and the scheduler's step. The
    scheduler is read at each call, so that it may be changed or replaced; the noise that its steps add comes from the
    call's generators, as with diffusers. States are kept in float32, whatever the network's precision.

    Args:
        pipe: A pipeline of diffusers: DDPM, DDIM, DiT, Stable Diffusion 1, 2, XL and 3, these also from image to image.
            It is not changed; the result shares its components.
        bundle: A bundle that was exported from the pipeline: its denoiser, in ONNX Runtime, then predicts in place of
            the pipeline's module. A LoRA belongs into the bundle then (``stepfuse lora``): a call raises ValueError
            where the module's weights have changed since, or an argument scales them.

    Returns:
        An object of the pipeline's class. Its ``original`` is the same pipeline, stepped by diffusers. Calls from
        several threads run one at a time.

    Raises:
        ValueError: If the class is not covered. A call raises it if the scheduler is not covered, or an argument needs
            what only the pipeline's own loop does; the message says which.
        BundleError: If the bundle cannot be used.
    """
    if isinstance(pipe, _Compiled):
        pipe = cast(Pipeline, pipe.original)
    kind = type(pipe)
    if kind.__name__ not in _FAMILIES or not isinstance(pipe, DiffusionPipeline):
        raise ValueError(f"pipe must be one of {', '.join(_FAMILIES)}, got {kind.__name__}")

    @wraps(kind.__call__)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        with self._stepfuse.running(self, inspect.signature(kind.__call__).bind(self, *args, **kwargs)):
            return kind.__call__(self, *args, **kwargs)

    # Under the class's own name and module, so that save_pretrained writes those.
    compiled_kind = type(kind.__name__, (_Compiled, kind), {"__call__": call, "__module__": kind.__module__})
    compiled: Any = object.__new__(compiled_kind)
    family = _FAMILIES[kind.__name__]
    predictor = ModulePredictor() if bundle is None else BundlePredictor(bundle, getattr(pipe, family.network))
    compiled.__dict__.update(pipe.__dict__, _stepfuse=_CompiledState(family, predictor))
    return cast(Pipeline, compiled)


class _Compiled:
    """What a compiled pipeline adds to its class."""

    @property
    def original(self) -> Any:
        """The pipeline with the same components, stepped by diffusers."""
        kind = type(self).__bases__[1]
        pipe: Any = object.__new__(kind)
        pipe.__dict__.update({name: value for name, value in self.__dict__.items() if name != "_stepfuse"})
        return pipe


class _CompiledState:
    """What a compiled pipeline keeps from call to call."""

    def __init__(self, family: PipelineFamily, predictor: Predictor) -> None:
        self.family = family
        self.predictor = predictor
        self._lock = threading.RLock()
        self._is_running = False

    @contextmanager
    def running(self, pipe: Any, bound: inspect.BoundArguments) -> Iterator[None]:
        """Has the engine run the loop of the pipeline's call within this context."""
        with self._lock:
            if self._is_running:
                raise RuntimeError("a pipeline cannot be called from its own callback: compile another one for it")
            bound.apply_defaults()
            name = self.family.network
            components = {name: getattr(pipe, name), "scheduler": pipe.scheduler}
            _require_covered(pipe.scheduler)  # before anything is encoded
            loop = DenoisingLoop(self.family, self.predictor, pipe, bound.arguments)
            # Not by setattr, which would change the pipeline's configuration.
            pipe.__dict__.update({name: loop.network, "scheduler": loop.scheduler})
            self._is_running = True
            try:
                yield
            finally:
                self._is_running = False
                pipe.__dict__.update(components)
                loop.stop()


def _require_covered(scheduler: Any) -> None:
    name = getattr(scheduler, "class_name", type(scheduler).__name__)
    if name in _NOISE_ELSEWHERE:
        raise ValueError(
            f"scheduler must add noise of the call's generators at once, got {name}, which {_NOISE_ELSEWHERE[name]}:"
            " take DPMSolverMultistepScheduler with algorithm_type='sde-dpmsolver++', or call pipe.original"
        )
    settings_of(scheduler)
