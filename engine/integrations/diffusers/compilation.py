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
from stepfuse.integrations.diffusers.placement import NETWORKS
from stepfuse.integrations.diffusers.predictors import BundlePredictor, ModulePredictor, Predictor
from stepfuse.integrations.diffusers.scheduler_loop import SchedulerLoop
from stepfuse.integrations.diffusers.scheduler_table import is_covered, settings_of

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
# Samplers whose steps do not build on those before: where a callback changes guidance or prompts, the loop begins anew.
_WITHOUT_HISTORY = ("ddim", "ddpm", "euler", "euler_ancestral", "lcm", "tcd", "edm_euler")
# Schedulers whose runs from an image are none of a sampler: see scheduler_table.
_ALONE_FROM_IMAGES = ("LMSDiscreteScheduler", "PNDMScheduler")


def compile(pipe: Pipeline, *, bundle: str | os.PathLike[str] | None = None) -> Pipeline:
    """The same pipeline with its denoising loop, or at least the steps of it, run by the engine.

    Its call takes and returns the same as before: the pipeline's own code checks, encodes, noises, calls back and
    decodes. Of DDPM, DDIM, DiT, Stable Diffusion 1, 2, XL and 3, these also from image to image, the engine runs the
    loop: the fused step makes the network's inputs and takes the place of guidance and the scheduler's step. All other
    pipelines keep their loop, whatever guidance is in it, and so do these where theirs does more than that
    (``skip_guidance_layers``), the scheduler needs it, or a callback is given prompts (``prompt_embeds`` among
    ``callback_on_step_end_tensor_inputs``), which it may change between steps that build on those before (DPM-Solver++
    2M); there the fused step takes the place of the scheduler's. A scheduler that this package does not have, or a
    configuration of one that no table holds, steps by diffusers' own code. The first call logs which it is, the last as
    a warning. The noise that steps add comes from the call's generators, as with diffusers. States that the engine
    keeps are in float32, whatever the network's precision.

    A pipeline on a GPU stays there: the step is ``stepfuse.kernels.fused_step`` on its current stream, and the calls of
    its networks, ControlNets among them, run as one CUDA graph for each kind, once it has run three times; kernel by
    kernel where they cannot be captured, and a warning says why. ``docs/gpu.md`` has what a graph follows and what has
    it captured anew.

    The result is the same pipeline, not a copy: the two share their attributes. What is set, loaded, enabled, moved or
    replaced on one, before or after, holds for the next call of both: schedulers and networks, a LoRA and its scale,
    an IP-Adapter, FreeU, slicing, a dtype.

    Args:
        pipe: A pipeline of diffusers with a component ``scheduler``.
        bundle: A bundle that was exported from the pipeline: its denoiser, in ONNX Runtime, then predicts in place of
            the pipeline's module, its ``unet`` or ``transformer``. A LoRA belongs into the bundle then (``stepfuse
            lora``): a call raises ValueError where the module has changed since, in its weights, adapters or
            settings, or an argument scales them.

    Returns:
        An object of the pipeline's class. Its ``original`` is ``pipe``, stepped by diffusers. Calls from several
        threads run one at a time.

    Raises:
        ValueError: If the pipeline has no scheduler, nothing that a bundle could stand in for, or an adapter beside a
            bundle. A call raises it if an argument needs what only the pipeline's own loop does, a component that the
            engine stands in for is replaced during it, or on a GPU a network is not there as a whole, offloaded by
            accelerate say; the message says which.
        DenoiserError: By a call, if a state is not finite: at its step on the CPU, at the end of the call on a GPU.
        ModuleNotFoundError: By a call on a GPU, if Triton is missing.
        BundleError: If the bundle cannot be used.

    Examples:
        >>> import diffusers
        >>> pipe = diffusers.DiffusionPipeline.from_pretrained("stable-diffusion-folder")
        >>> pipe = sf.integrations.diffusers.compile(pipe)
        >>> type(pipe).__name__
        'StableDiffusionPipeline'
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
    compiled.__dict__ = pipe.__dict__
    compiled._stepfuse = _CompiledState(pipe, network, predictor)
    return cast(Pipeline, compiled)


def _may_change_prompts(arguments: Mapping[str, Any]) -> bool:
    """Whether a call's ``callback_on_step_end`` is given more than the latents."""
    callback = arguments.get("callback_on_step_end")
    tensors = getattr(callback, "tensor_inputs", arguments.get("callback_on_step_end_tensor_inputs"))
    return callback is not None and bool(set(tensors or ()) - {"latents"})


def _has_history(scheduler: Any) -> bool:
    """Whether the steps of a scheduler that is covered build on those before."""
    return settings_of(scheduler).defaults["sampler"] not in _WITHOUT_HISTORY


def _component(name: str) -> property:
    """A component: the pipeline's own, but for what stands in for it while a call runs."""

    def get(self: Any) -> Any:
        if name in self._stepfuse.stand_ins:
            return self._stepfuse.stand_ins[name]
        if name not in self.__dict__:
            raise AttributeError(name)
        return self.__dict__[name]

    def replace(self: Any, value: Any) -> None:
        if name in self._stepfuse.stand_ins:
            raise ValueError(f"{name} must not be replaced while the engine runs a call: call pipe.original")
        self.__dict__[name] = value

    return property(get, replace)


class _Compiled:
    """What a compiled pipeline adds to its class. All other attributes are the pipeline's own."""

    __slots__ = ("_stepfuse",)
    _stepfuse: _CompiledState
    scheduler = _component("scheduler")
    unet, transformer, transformer_2, controlnet = map(_component, NETWORKS)

    @property
    def original(self) -> Any:
        """The pipeline that was compiled, stepped by diffusers."""
        return self._stepfuse.original


class _CompiledState:
    """What a compiled pipeline keeps from call to call.

    Attributes:
        original: The pipeline that was compiled.
        predictor: What predicts for it.
        stand_ins: While a call runs, what stands in for the pipeline's components, by name.
    """

    def __init__(self, original: Any, network: str | None, predictor: Predictor) -> None:
        self.original = original
        self.predictor = predictor
        self.stand_ins: Mapping[str, Any] = {}
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
            self.stand_ins, self._is_running = loop.components, True
            try:
                yield
                loop.check()
            finally:
                self.stand_ins, self._is_running = {}, False
                loop.stop()

    def _loop(self, pipe: Any, arguments: Mapping[str, Any]) -> DenoisingLoop | SchedulerLoop:
        self.predictor.prepare(pipe, self._network, arguments)
        kind, scheduler = type(pipe).__name__, pipe.scheduler
        name = getattr(scheduler, "class_name", type(scheduler).__name__)
        family = _FAMILIES.get(kind)
        alone = name in _STEPPED_ALONE or (name in _ALONE_FROM_IMAGES and "strength" in arguments)
        alone |= bool(arguments.get("skip_guidance_layers")) or not is_covered(scheduler)
        if family is None or alone or (_may_change_prompts(arguments) and _has_history(scheduler)):
            loop = SchedulerLoop(str(self._network), self.predictor, pipe)
            if loop.why_left:
                self._log(logging.WARNING, f"{kind} runs its own loop, and {name} its own step: {loop.why_left}")
            else:
                self._log(logging.INFO, f"{kind} runs its own loop, with the fused step of {name}")
            return loop
        self._log(logging.INFO, f"the engine runs the loop of {kind}, guidance in the fused step of {name}")
        return DenoisingLoop(family, self.predictor, pipe, arguments)

    def _log(self, level: int, what: str) -> None:
        if what not in self._logged:
            self._logged.add(what)
            logger.log(level, "compile: %s", what)
