"""A diffusers pipeline, read: what its bundle would have, and what its network is."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from stepfuse.arguments import plain
from stepfuse.bundle.model_info import ModelInfo
from stepfuse.errors import ExportError
from stepfuse.export.pipelines.export_plan import ExportPlan
from stepfuse.export.pipelines.pipeline_folder import PipelineFolder, readable
from stepfuse.export.pipelines.scheduler import read_settings
from stepfuse.integrations.scheduler_config import SchedulerSettings
from stepfuse.requests.resolution import compile_table

# Whatever a pipeline's call begins with, its networks are the same; they say themselves what they are conditioned on.
_KINDS = ("", "Img2Img", "Inpaint", "ControlNet", "ControlNetImg2Img", "ControlNetInpaint")

#: The pipeline classes that can be exported, and the module in ``stepfuse.export.pipelines`` of each.
PIPELINES = {
    "DDPMPipeline": "pixels",
    "DDIMPipeline": "pixels",
    "DiTPipeline": "dit",
    **{f"StableDiffusion{kind}Pipeline": "stable_diffusion" for kind in _KINDS},
    **{f"StableDiffusionXL{kind}Pipeline": "stable_diffusion_xl" for kind in _KINDS},
    **{f"StableDiffusion3{kind}Pipeline": "stable_diffusion_3" for kind in ("", "ControlNet")},
    "PixArtAlphaPipeline": "pixart",
    "PixArtSigmaPipeline": "pixart",
    "SanaPipeline": "sana",
    "ZImagePipeline": "z_image",
    "QwenImagePipeline": "qwen_image",
    "FluxPipeline": "flux",
    "FluxFillPipeline": "flux",
    "LatentConsistencyModelPipeline": "stable_diffusion",
}

#: Modules of pipelines that take ControlNets, and of which class these are; and those that skip layers of CLIP.
_CONTROLNETS = {
    **dict.fromkeys(("stable_diffusion", "stable_diffusion_xl"), "ControlNetModel"),
    "stable_diffusion_3": "SD3ControlNetModel",
}
_SKIPPING = ("stable_diffusion", "stable_diffusion_xl")


def read_plan(
    folder: PipelineFolder,
    *,
    size: Any = None,
    sampler: str | None = None,
    sampler_options: Mapping[str, Any] | None = None,
    controlnets: Mapping[str, str | os.PathLike[str]] | None = None,
    clip_skip: int = 0,
) -> tuple[ExportPlan, ModelInfo]:
    """Plans the pipeline's bundle from its configurations; no weights are read. Arguments are ``from_diffusers``'s.

    Raises:
        ExportError: If the pipeline's class, a component or a setting is not covered.
        ValueError: If ``size`` is no whole number or pair of them, or the sampler refuses an option.
        TypeError: If the sampler does not have an option.
    """
    pixels = None if size is None else _pixels(size)
    if folder.class_name not in PIPELINES:
        raise ExportError(f"{folder.path}: pipeline must be one of {', '.join(PIPELINES)}, got {folder.class_name}")
    module = import_module(f"stepfuse.export.pipelines.{PIPELINES[folder.class_name]}")
    asked_for = _parts_asked_for(folder, controlnets or {}, clip_skip)
    with readable(folder):
        settings = read_settings(folder, sampler, sampler_options or {})
        plan: ExportPlan = module.plan(folder, pixels, **asked_for)
    plan = replace(plan, pipeline=replace(plan.pipeline, dynamic_shift=settings.dynamic_shift))
    info = _model_info(plan, settings)
    compile_table(info, None, None, None, None, {})  # raises what the sampler refuses
    return plan, info


def _parts_asked_for(
    folder: PipelineFolder, controlnets: Mapping[str, str | os.PathLike[str]], clip_skip: int
) -> dict[str, Any]:
    """Further arguments of a plan."""
    module = PIPELINES[folder.class_name]
    for name, value, takes, which in (
        ("controlnets", controlnets, module in _CONTROLNETS, "1.x, 2.x, XL or 3"),
        ("clip_skip", clip_skip, module in _SKIPPING, "1.x, 2.x or XL"),
    ):
        if value and not takes:
            raise ExportError(f"{folder.path}: {name} need Stable Diffusion {which}, got {folder.class_name}")
    found: dict[str, Any] = {"clip_skip": clip_skip} if module in _SKIPPING else {}
    if module in _CONTROLNETS:
        from stepfuse.export.pipelines.controlnet import add_controls

        paths = {name: Path(one) for name, one in controlnets.items()}
        found["controls"] = add_controls(folder, paths, _CONTROLNETS[module])
    return found


def _pixels(size: Any) -> tuple[int, int]:
    """Width and height of a ``size`` that is one number or both."""
    given = plain(size)
    sides = tuple(given) if isinstance(given, tuple | list) else (given, given)
    if len(sides) != 2 or not all(isinstance(side, int) and not isinstance(side, bool) for side in sides):
        raise ValueError(f"size must be a whole number of pixels or (width, height), got {size!r}")
    return sides


def _model_info(plan: ExportPlan, settings: SchedulerSettings) -> ModelInfo:
    steps = min(plan.defaults["steps"], settings.schedule.num_train_timesteps)
    shift = plan.pipeline.shift_for(*plan.shape[1:])  # of other sizes, the pipeline finds it
    dynamic = {} if shift is None or "timesteps" in settings.defaults else {"shift": shift}
    return ModelInfo(
        plan.shape,
        settings.schedule,
        settings.prediction_type,
        plan.cond,
        data_range=plan.data_range,
        range_known=not plan.is_latent,
        defaults={**plan.defaults, "steps": steps, **dynamic, **settings.defaults},
        sampler_options=settings.sampler_options,
        guidance=plan.guidance,
    )
