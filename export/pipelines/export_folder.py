"""A diffusers pipeline's folder becomes a bundle: planned from its configurations, then exported part by part."""

from __future__ import annotations

import gc
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from stepfuse.arguments import plain, whole_number
from stepfuse.bundle.bundle import Bundle, finish_bundle
from stepfuse.bundle.folder import MANIFEST
from stepfuse.bundle.model_info import ModelInfo
from stepfuse.bundle.new_folder import new_folder
from stepfuse.display import byte_size, printable
from stepfuse.errors import ExportError, StepfuseError
from stepfuse.extras import pip_install
from stepfuse.integrations.scheduler_config import SchedulerSettings
from stepfuse.requests.resolution import compile_table

try:
    import diffusers  # noqa: F401
    import tokenizers  # noqa: F401
    import torch
    import transformers  # noqa: F401
except ImportError as error:
    raise ImportError(f"exporting a diffusers pipeline needs {error.name}: {pip_install('export')}") from error

from stepfuse.export.onnx.graph import OPSETS, Report, export_onnx
from stepfuse.export.onnx.precision import PRECISIONS
from stepfuse.export.onnx.validate import validate
from stepfuse.export.pipelines.export_plan import ExportPart, ExportPlan
from stepfuse.export.pipelines.pipeline_folder import PipelineFolder
from stepfuse.export.pipelines.scheduler import read_settings

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

LEFT_OUT = ("safety_checker", "feature_extractor", "image_encoder")
ROW_COUNTS = (1, 3)

#: Called as each piece of work begins: what it is, how many are done, how many there are.
Progress = Callable[[str, int, int], None]

logger = logging.getLogger("stepfuse")


def from_diffusers(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    precision: str = "float32",
    sampler: str | None = None,
    sampler_options: Mapping[str, Any] | None = None,
    controlnets: Mapping[str, str | os.PathLike[str]] | None = None,
    clip_skip: int = 0,
    opset: int = 18,
    size: int | tuple[int, int] | None = None,
    name: str | None = None,
    tolerance: float | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Bundle:
    """Writes a folder that diffusers' ``save_pretrained`` has made as a bundle.

    Every network is run in ONNX Runtime beside the original on the same random inputs, and every tokenizer on the same
    texts; a bundle whose error is too large is not put in place, and nothing is left of a failed export. Files are
    written once, into a temporary folder beside ``out`` that is renamed to it. Components are loaded one at a time,
    text encoders together. Nothing is unpickled, and no hub is asked.

    Args:
        path: The pipeline's folder; ``PIPELINES`` lists the classes that are covered.
        out: The folder to make.
        precision: ``float32`` or ``float16``: weights and arithmetic in half the bytes, inputs and outputs float32.
            Graphs that overflow in float16 stay float32: a VAE that its pipeline runs in float32 (``force_upcast`` of
            XL's), and text encoders with a T5.
        sampler: A sampler in the place of the pipeline's own scheduler, as if that were made ``from_config`` of it:
            ddim, ddpm, dpmpp_2m, lcm, heun, euler, euler_ancestral, deis, plms, unipc, tcd,
            dpmpp_2m_sde, dpmpp_3m_sde, dpmpp_sde or sa_solver. The bundle takes any of them later, too.
        sampler_options: Options of that sampler, or of the pipeline's own, in the place of what the configuration says:
            ``{"karras": True, "spacing": "trailing"}``.
        controlnets: Folders of ControlNets by the names that ``TextToImage`` is to know them by, 1 to 64 letters,
            digits, ``_`` and ``-``: part of the denoiser, for Stable Diffusion 1.x, 2.x and XL. A pipeline that was
            saved with one has it as ``controlnet``.
        clip_skip: Layers of CLIP's text encoders, counted from the end, that are left out as by diffusers; here for
            negative prompts too.
        opset: ONNX operator set, 18 to 23.
        size: Default size of pictures in pixels: a side or (width, height); None is the model's own.
        name: The model's name; None is the folder's.
        tolerance: Largest error allowed of any output, relative to its largest magnitude; None is
            ``stepfuse.export.onnx.validate.TOLERANCES``.
        overwrite: Whether a bundle that is there already is replaced.
        progress: Called as each piece of work begins, ``progress(what, done, total)``.

    Returns:
        The bundle; ``bundle.export`` says how it was exported, the errors found, and what was left out.

    Raises:
        ExportError: If the folder is incomplete, a class or setting in it is not covered, a file would have to be
            unpickled, a network cannot be reproduced, the disk is too small, or ``out`` is there already.
        ValueError: If ``precision`` or ``opset`` is not supported, ``size`` is no whole number or pair of them,
            ``clip_skip`` is negative, a ControlNet's name is not one, or the sampler refuses an option.
        TypeError: If the sampler does not have an option, or ``clip_skip`` is no whole number.

    Examples:
        >>> from stepfuse.export import from_diffusers
        >>> bundle = from_diffusers("stable-diffusion-folder", "my-export")  # doctest: +SKIP
    """
    target = Path(out)
    opset, clip_skip = whole_number("opset", opset), whole_number("clip_skip", clip_skip)
    if clip_skip < 0:
        raise ValueError(f"clip_skip must be at least 0, got {clip_skip}")
    _check_arguments(precision, opset)
    pixels = None if size is None else _pixels(size)
    if target.exists() and not (overwrite and (target / MANIFEST).is_file()):  # found now, not when all is exported
        rule = f"only a folder with a {MANIFEST} is replaced" if overwrite else "pass overwrite=True to replace it"
        raise ExportError(f"{target} exists already: {rule}")
    folder = PipelineFolder(Path(path))
    if folder.class_name not in PIPELINES:
        raise ExportError(f"{folder.path}: pipeline must be one of {', '.join(PIPELINES)}, got {folder.class_name}")
    module = import_module(f"stepfuse.export.pipelines.{PIPELINES[folder.class_name]}")
    asked_for = _parts_asked_for(folder, controlnets or {}, clip_skip)
    with _readable(folder):
        settings = read_settings(folder, sampler, sampler_options or {})
        plan: ExportPlan = module.plan(folder, pixels, **asked_for)
        for component in {component for part in plan.parts for component in part.components}:
            folder.weights(component)
    plan = replace(plan, pipeline=replace(plan.pipeline, dynamic_shift=settings.dynamic_shift))
    info = _model_info(plan, settings)
    compile_table(info, None, None, None, None, {})  # raises what the sampler refuses, before anything is exported
    left_out = [component for component in LEFT_OUT if folder.has(component)]
    if left_out:
        logger.warning("%s: not exported: %s", folder.path, ", ".join(left_out))
    with new_folder(target, overwrite=overwrite) as new:
        work = _PipelineExport(
            folder, new.path, precision, opset, tolerance, progress or (lambda what, done, total: None)
        )
        try:
            record = work.run(plan)
            return finish_bundle(
                new,
                name=name or folder.path.resolve().name,
                info=info,
                provenance=_provenance(folder),
                licence=folder.licence(),
                pipeline=plan.pipeline,
                export={**record, "left_out": left_out},
            )
        except OSError as error:
            free = byte_size(shutil.disk_usage(target.parent).free)
            needed = byte_size(sum(file.stat().st_size for file in new.path.iterdir()))
            raise ExportError(
                f"{target} cannot be written: {error}: it takes {needed} and more, {free} are free"
            ) from error


@dataclass
class _PipelineExport:
    """An export in progress."""

    folder: PipelineFolder
    out: Path
    precision: str
    opset: int
    tolerance: float | None
    progress: Progress

    def run(self, plan: ExportPlan) -> dict[str, Any]:
        """Exports and validates all parts, and returns the manifest's record of it."""
        total = 3 * len(plan.parts) + 1
        reports: dict[str, Report] = {}
        errors: dict[str, dict[str, float]] = {}
        loaded: dict[str, torch.nn.Module] = {}
        for number, part in enumerate(plan.parts):
            done = 3 * number
            if loaded.keys() != part.components.keys():
                loaded.clear()
                gc.collect()  # a component is gone before the next one is loaded
                self.progress(f"{part.file}: loading {' and '.join(part.components)}", done, total)
                loaded = {name: self.folder.load(name, kinds) for name, kinds in part.components.items()}
            try:
                reports[part.file], errors[part.file] = self._export(part, loaded, done, total)
            except ExportError as error:
                raise ExportError(f"{part.file}: {error}") from error
        for file, content in plan.tokenizers.items():
            (self.out / file).write_text(content, encoding="utf-8")
        self.progress("writing", total - 1, total)
        return {
            "opset": self.opset,
            "precision": self.precision,
            "precisions": {file: report.precision for file, report in reports.items()},
            "float32_operators": {file: dict(report.float32_operators) for file, report in reports.items()},
            **{package: version(package) for package in ("torch", "diffusers", "transformers", "onnxruntime")},
            "rows": list(ROW_COUNTS),
            "errors": errors,
        }

    def _export(
        self, part: ExportPart, loaded: Mapping[str, torch.nn.Module], done: int, total: int
    ) -> tuple[Report, dict[str, float]]:
        """One graph, and the worst error of each of its outputs."""
        module = part.build(*(loaded[name] for name in part.components))
        precision = "float32" if part.float32 else self.precision
        self.progress(f"{part.file}: exporting", done + 1, total)
        report = export_onnx(
            module,
            self.out / part.file,
            part.inputs,
            part.outputs,
            sizes=part.sizes,
            opset=self.opset,
            precision=precision,
            prefix=part.prefix,
        )
        self.progress(f"{part.file}: comparing with torch", done + 2, total)
        errors = validate(
            self.out / part.file,
            module,
            part.inputs,
            part.outputs,
            sizes=part.sizes,
            row_counts=ROW_COUNTS,
            tolerance=self.tolerance,
            precision=precision,
        )
        return report, errors


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


@contextmanager
def _readable(folder: PipelineFolder) -> Iterator[None]:
    """Whatever a damaged configuration or tokenizer makes of this code or of a library is an error of the folder."""
    try:
        yield
    except BaseException as error:
        panic = type(error).__name__ == "PanicException"  # of the tokenizers library, which is no Exception
        if isinstance(error, StepfuseError | ImportError | MemoryError) or not (isinstance(error, Exception) or panic):
            raise
        reason = printable(f"{type(error).__name__}: {error}", 500)
        raise ExportError(f"{folder.path}: its files must be as diffusers writes them, got {reason}") from error


def _check_arguments(precision: str, opset: int) -> None:
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    if not OPSETS[0] <= opset <= OPSETS[1]:
        raise ValueError(f"opset must be between {OPSETS[0]} and {OPSETS[1]}, got {opset}")


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


def _provenance(folder: PipelineFolder) -> str:
    name = folder.index.get("_name_or_path")
    source = f", {name}" if isinstance(name, str) and name and not Path(name).is_absolute() else ""
    return f"exported from diffusers' {folder.class_name} {folder.path.resolve().name}{source}"
