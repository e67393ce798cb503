"""``DiTPipeline``: a class-conditional transformer on a VAE's latents (Peebles and Xie, 2023)."""

from __future__ import annotations

from collections import Counter
from typing import Any

from stepfuse.bundle.cond_input import CondInput
from stepfuse.bundle.pipeline_info import PipelineInfo
from stepfuse.export.onnx.inputs import Input
from stepfuse.export.pipelines.export_plan import DENOISER, PREDICTION, SAMPLE, TIMESTEP, ExportPart, ExportPlan
from stepfuse.export.pipelines.pipeline_folder import Config, PipelineFolder
from stepfuse.export.pipelines.size import Size, own_size
from stepfuse.export.pipelines.vae import pixels_per_latent, vae_config, vae_parts
from stepfuse.extras import pip_install

try:
    import torch
except ImportError as error:
    raise ImportError(f"exporting needs torch ({error}): {pip_install('export')}") from error

KIND = "DiTTransformer2DModel"
LABELS = "class_labels"
DATA_RANGE = (-4.0, 4.0)


class DiTModule(torch.nn.Module):
    """diffusers' ``DiTTransformer2DModel`` without the variance that it predicts beside the noise."""

    def __init__(self, transformer: Any) -> None:
        super().__init__()
        self.transformer = transformer
        self.channels = transformer.config.in_channels

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, class_labels: torch.Tensor) -> torch.Tensor:
        """Shape (R, C, h, w), (R,) and (R,) to (R, C, h, w)."""
        found = self.transformer(sample, timestep=timestep, class_labels=class_labels, return_dict=False)[0]
        return found[:, : self.channels]


def plan(folder: PipelineFolder, size: Size) -> ExportPlan:
    """What is exported of the pipeline.

    Raises:
        ExportError: If a component is not covered, or ``size`` is none that the model takes.
    """
    config, vae = folder.config("transformer", KIND), vae_config(folder)
    config.require("norm_type", "'ada_norm_zero'", lambda value: value == "ada_norm_zero")
    channels, classes = config.number("in_channels"), config.number("num_embeds_ada_norm")
    vae.require("latent_channels", f"{channels}, the transformer's", lambda value: value == channels)
    allowed = channels, 2 * channels
    config.require("out_channels", " or ".join(map(str, allowed)), lambda value: value in (None, *allowed))
    cell = pixels_per_latent(vae)
    height, width = own_size(config, size, config.number("patch_size"), cell=cell, fixed=True)
    inputs = [
        Input(SAMPLE, (channels, height, width)),
        Input(TIMESTEP, (), high=1000),
        Input(LABELS, (), "int64", high=classes + 1),
    ]
    shape = (channels, height, width)
    denoiser = ExportPart(DENOISER, {"transformer": (KIND,)}, DiTModule, inputs, [PREDICTION], prefix="transformer.")
    return ExportPlan(
        shape,
        PipelineInfo(folder.class_name, pixels_per_latent=cell, size_multiple=cell, fixed_size=True),
        [denoiser, *vae_parts(vae, shape)],
        {LABELS: CondInput("int64", (), null=classes, names=_names(folder, config))},
        {"steps": 50, "guidance_scale": 4.0},
        data_range=DATA_RANGE,
    )


def _names(folder: PipelineFolder, config: Config) -> tuple[str, ...]:
    """Names of the classes, all different; empty if the pipeline has no labels.

    A class is called by the first of its labels, by all of them where another class has that one too, and by its number
    if it has none.
    """
    given = folder.index.get("id2label")
    if not isinstance(given, dict) or not given:
        return ()
    whole = [str(given.get(str(number), number)) for number in range(config.number("num_embeds_ada_norm"))]
    first = [label.split(",")[0].strip() for label in whole]
    count = Counter(first)
    names = [short if count[short] == 1 else label for short, label in zip(first, whole, strict=True)]
    count = Counter(names)
    return tuple(name if count[name] == 1 else f"{name} ({number})" for number, name in enumerate(names))
