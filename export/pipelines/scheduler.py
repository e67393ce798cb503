"""The pipeline's scheduler as a schedule and a sampler, or another sampler on the same noise levels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from stepfuse.arguments import plain
from stepfuse.errors import ExportError
from stepfuse.export.pipelines.pipeline_folder import PipelineFolder
from stepfuse.integrations.scheduler_config import (
    COVERED,
    SchedulerSettings,
    UncoveredSchedulerError,
    read_scheduler,
    with_algorithm,
)
from stepfuse.integrations.uncovered import reason_of
from stepfuse.samplers.names import require_sampler

CLASSES = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
    "dpmpp_2m_sde": "DPMSolverMultistepScheduler",
    "lcm": "LCMScheduler",
    "heun": "HeunDiscreteScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler_ancestral": "EulerAncestralDiscreteScheduler",
    "deis": "DEISMultistepScheduler",
    "dpmpp_sde": "DPMSolverSDEScheduler",
    "sa_solver": "SASolverScheduler",
    "plms": "PNDMScheduler",
    "unipc": "UniPCMultistepScheduler",
    "lms": "LMSDiscreteScheduler",
    "dpmpp_2s": "DPMSolverSinglestepScheduler",
    "kdpm2": "KDPM2DiscreteScheduler",
    "kdpm2_ancestral": "KDPM2AncestralDiscreteScheduler",
    "tcd": "TCDScheduler",
}
FLOW = {
    "euler": "FlowMatchEulerDiscreteScheduler",
    "heun": "FlowMatchHeunDiscreteScheduler",
    "lcm": "FlowMatchLCMScheduler",
}
EDM = {"edm_euler": "EDMEulerScheduler", "edm_dpmpp_2m": "EDMDPMSolverMultistepScheduler"}
#: Samplers that no class of diffusers is, with the one whose configuration they take.
OF_NO_CLASS = {"dpmpp_3m_sde": "dpmpp_2m_sde"}

_OWN = {"DDIMPipeline": "DDIMScheduler"}  # pipelines that convert the saved scheduler to a class of their own


def read_settings(
    folder: PipelineFolder, sampler: str | None, options: Mapping[str, Any] = MappingProxyType({})
) -> SchedulerSettings:
    """Reads the schedule and the sampler's settings from the scheduler's configuration.

    Args:
        folder: The pipeline.
        sampler: One of ``CLASSES``, as if the pipeline had that scheduler made ``from_config`` of its own, or of
            ``OF_NO_CLASS``; None keeps its own.
        options: Of that sampler, instead of what the configuration says.

    Raises:
        ExportError: If ``sampler`` is unknown, or the scheduler or a setting of it is not covered.
    """
    file = folder.path / "scheduler" / "scheduler_config.json"
    config = folder.json("scheduler", file.name)
    given = _class_of(folder, config)
    classes = FLOW if given.startswith("FlowMatch") else EDM if given in EDM.values() else CLASSES
    if sampler is not None:
        try:
            require_sampler(sampler, {**classes, **(OF_NO_CLASS if classes is CLASSES else {})}, f" for {given}")
        except ValueError as error:
            raise ExportError(str(error)) from error
    configured = OF_NO_CLASS.get(sampler or "", sampler)
    name = classes[configured] if configured is not None else _OWN.get(folder.class_name, given)
    try:
        entries = {**with_algorithm(name, configured or "", config), **_overridden(folder, config)}
        settings = read_scheduler({**entries, "_class_name": name})
    except UncoveredSchedulerError as error:
        rule = f"{name} is not covered{reason_of(name)}" if name not in COVERED else f"{error.rule}: change that"
        raise ExportError(f"{file}: {rule}{_way_out(error.instead, classes, name in COVERED)}") from error
    except (ValueError, TypeError) as error:
        raise ExportError(f"{file}: {error}") from error
    if sampler is not None and sampler != configured:
        settings = _with_own(settings, sampler)
    return replace(settings, defaults={**settings.defaults, **plain(dict(options))})


def _with_own(settings: SchedulerSettings, sampler: str) -> SchedulerSettings:
    """The settings with one of the other samplers in the place of the own."""
    others, own = dict(settings.sampler_options), dict(settings.defaults)
    defaults = {"sampler": sampler, **others.pop(sampler)}
    return replace(settings, defaults=defaults, sampler_options={**others, own.pop("sampler"): own})


def _way_out(instead: Sequence[str], classes: Mapping[str, str], configurable: bool) -> str:
    """Which sampler to ask for, as the end of a message; that each reads the configuration has been tried."""
    samplers = [sampler for one in instead for sampler, kind in classes.items() if kind == one]
    if not samplers:
        return "" if configurable else f": choose a sampler, one of {', '.join(classes)}"
    more = f", or {', '.join(samplers[1:])}" if samplers[1:] else ""
    first, give = samplers[0], " or give" if configurable else ": give"
    return f"{give} --sampler {first} (sampler={first!r} in Python), the nearest that reads it{more}"


def _class_of(folder: PipelineFolder, config: dict[str, Any]) -> str:
    """The class that diffusers makes: model_index.json's; that of the file stays behind when a scheduler is swapped."""
    named = folder.index.get("scheduler")
    return str(named[1] if isinstance(named, list) and len(named) == 2 else config.get("_class_name"))


def _overridden(folder: PipelineFolder, config: dict[str, Any]) -> dict[str, Any]:
    """Entries that the pipeline's constructor changes, as diffusers 0.42 does."""
    if folder.class_name != "StableDiffusionPipeline":
        return {}
    return {"steps_offset": 1, **({"clip_sample": False} if config.get("clip_sample", True) is True else {})}
