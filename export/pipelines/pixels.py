"""``DDPMPipeline`` and ``DDIMPipeline``: an unconditional UNet on pixels."""

from __future__ import annotations

from typing import Any

from stepfuse.bundle.pipeline_info import PipelineInfo
from stepfuse.export.pipelines.export_plan import (
    DENOISER,
    PREDICTION,
    ExportPart,
    ExportPlan,
    sample_inputs,
    trial_sizes,
)
from stepfuse.export.pipelines.pipeline_folder import PipelineFolder
from stepfuse.export.pipelines.size import Size, own_size
from stepfuse.extras import pip_install

try:
    import torch
except ImportError as error:
    raise ImportError(f"exporting needs torch ({error}): {pip_install('export')}") from error

KIND = "UNet2DModel"


class UNetModule(torch.nn.Module):
    """diffusers' ``UNet2DModel``."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """Shape (R, C, H, W) and (R,) to (R, C, H, W)."""
        return self.unet(sample, timestep, return_dict=False)[0]


def plan(folder: PipelineFolder, size: Size) -> ExportPlan:
    """What is exported of the pipeline.

    Raises:
        ExportError: If a component is not covered, or ``size`` is none that the model takes.
    """
    config = folder.config("unet", KIND)
    config.require_none("class_embed_type", "num_class_embeds")
    channels = config.number("in_channels")
    config.require("out_channels", f"in_channels, {channels}", lambda value: value == channels)
    multiple = 2 ** (len(config["block_out_channels"]) - 1)
    shape = (channels, *own_size(config, size, multiple))
    denoiser = ExportPart(
        DENOISER,
        {"unet": (KIND,)},
        UNetModule,
        sample_inputs(channels, multiple),
        [PREDICTION],
        trial_sizes(shape, multiple),
        "unet.",
    )
    steps = {"DDPMPipeline": 1000, "DDIMPipeline": 50}[folder.class_name]
    info = PipelineInfo(folder.class_name, pixels_per_latent=1, size_multiple=multiple)
    return ExportPlan(shape, info, [denoiser], defaults={"steps": steps})
