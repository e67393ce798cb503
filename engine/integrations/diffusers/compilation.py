"""``compile``: a diffusers pipeline whose denoising loop the engine runs."""

from __future__ import annotations

import inspect
import logging
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar, cast

from diffusers import DiffusionPipeline

from stepfuse.integrations.diffusers.loop import DenoisingLoop, PipelineFamily
from stepfuse.integrations.diffusers.predictors import BundlePredictor, ModulePredictor, Predictor
from stepfuse.integrations.diffusers.scheduler_loop import SchedulerLoop
from stepfuse.integrations.diffusers.scheduler_table import settings_of

Pipeline = TypeVar("Pipeline")  # a diffusers pipeline's class

logger = logging.getLogger(__name__)

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

# Schedulers that the loop cannot run: their noise is more than a step's own, which is added to the state, taken from a
# call's generators, or their noise levels are no schedule's.
_STEPPED_ALONE = (
    "CMStochasticIterativeScheduler",
    "DDIMInverseScheduler",
    "DPMSolverSDEScheduler",
    "IPNDMScheduler",
    "SASolverScheduler",
)
# Those whose runs from an image are none of a sampler: see scheduler_table.
_ALONE_FROM_IMAGES = ("LMSDiscreteScheduler", "PNDMScheduler")


def compile(pipe: Pipeline, *, bundle: str | os.PathLike[str] | None = None) -> Pipeline:
    """The same pipeline with its denoising loop, or at least the steps of it, run by the engine.

    Its call takes and returns the same as before: the pipeline's own code checks, encodes, noises, calls back and
    decodes. Of DDPM, DDIM, DiT, Stable Diffusion 1, 2, XL and 3, these also from image to image, the engine runs the
    loop: the fused step makes the network's inputs and takes the place of guidance and the scheduler's step. All other
    pipelines keep their loop, whatever guidance is in it, and so do these where theirs does more than that
    (``skip_guidance_layers``) or the scheduler needs it; there the fused step takes the place of the scheduler's. The
    first call logs which it is. The scheduler is read at each call, so that it may be changed or replaced; the noise
    that its steps add comes from the call's generators, as with diffusers. States that the engine keeps are in float32,
    whatever the network's precision.

    Args:
        pipe: A pipeline of diffusers with a component ``scheduler``, of a class that this package has. It is not
            changed; the result shares its components.
        bundle: A bundle that was exported from the pipeline: its denoiser, in ONNX Runtime, then predicts in place of
            the pipeline's module, its ``unet`` or ``transformer``. A LoRA belongs into the bundle then (``stepfuse
            lora``): a call raises ValueError where the module's weights have changed since, or an argument scales them.

    Returns:
        An object of the pipeline's class. Its ``original`` is the same pipeline, stepped by diffusers. Calls from
        several threads run one at a time.

    Raises:
        ValueError: If the pipeline has no scheduler, or nothing that a bundle could stand in for. A call raises it if
            the scheduler is not covered, or an argument needs what only the pipeline's own loop does; the message says
            which.
        BundleError: If the bundle cannot be used.
    """
    if isinstance(pipe, _Compiled):
        pipe = cast(Pipeline, pipe.original)
    kind = type(pipe)
    if not isinstance(pipe, DiffusionPipeline) or not hasattr(getattr(pipe, "scheduler", None), "step"):
        raise ValueError(f"pipe must be a pipeline of diffusers with a scheduler that steps, got {kind.__name__}")
    network = next((name for name in ("unet", "transformer") if getattr(pipe, name, None) is not None), None)
    if bundle is not None and network is None:
        raise ValueError(f"a bundle stands in for a pipeline's unet or transformer, got {kind.__name__}, without one")

    @wraps(kind.__call__)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        with self._stepfuse.running(self, inspect.signature(kind.__call__).bind(self, *args, **kwargs)):
            return kind.__call__(self, *args, **kwargs)

    # Under the class's own name and module, so that save_pretrained writes those.
    compiled_kind = type(kind.__name__, (_Compiled, kind), {"__call__": call, "__module__": kind.__module__})
    compiled: Any = object.__new__(compiled_kind)
    predictor = ModulePredictor() if bundle is None else BundlePredictor(bundle, getattr(pipe, str(network)))
    compiled.__dict__.update(pipe.__dict__, _stepfuse=_CompiledState(network, predictor))
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

    def __init__(self, network: str | None, predictor: Predictor) -> None:
        self.predictor = predictor
        self._network = network
        self._lock = threading.RLock()
        self._is_running = False
        self._logged: set[str] = set()

    @contextmanager
    def running(self, pipe: Any, bound: inspect.BoundArguments) -> Iterator[None]:
        """Has the engine run the loop of the pipeline's call, or its steps, within this context."""
        with self._lock:
            if self._is_running:
                raise RuntimeError("a pipeline cannot be called from its own callback: compile another one for it")
            bound.apply_defaults()
            loop = self._loop(pipe, bound.arguments)  # refuses before anything is encoded
            components = {name: getattr(pipe, name) for name in loop.components}
            # Not by setattr, which would change the pipeline's configuration.
            pipe.__dict__.update(loop.components)
            self._is_running = True
            try:
                yield
            finally:
                self._is_running = False
                pipe.__dict__.update(components)
                loop.stop()

    def _loop(self, pipe: Any, arguments: Mapping[str, Any]) -> DenoisingLoop | SchedulerLoop:
        kind, scheduler = type(pipe).__name__, pipe.scheduler
        name = getattr(scheduler, "class_name", type(scheduler).__name__)
        family = _FAMILIES.get(kind)
        alone = name in _STEPPED_ALONE or (name in _ALONE_FROM_IMAGES and "strength" in arguments)
        if family is None or alone or arguments.get("skip_guidance_layers"):
            self._log(f"{kind} runs its own loop, with the fused step of {name}")
            return SchedulerLoop(str(self._network), self.predictor, pipe)
        settings_of(scheduler)  # refuses what is not covered
        self._log(f"the engine runs the loop of {kind}, guidance in the fused step of {name}")
        return DenoisingLoop(family, self.predictor, pipe, arguments)

    def _log(self, what: str) -> None:
        if what not in self._logged:
            self._logged.add(what)
            logger.info("compile: %s", what)
