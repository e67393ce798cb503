"""``StableDiffusionPipeline``: Stable Diffusion 1.x and 2.x (Rombach et al., 2022), and latent consistency models."""

from __future__ import annotations

from stepfuse.bundle.cond_input import CondInput
from stepfuse.bundle.pipeline_info import PipelineInfo
from stepfuse.export.onnx.inputs import Input
from stepfuse.export.pipelines.conditioned_unet import ConditionedUNet
from stepfuse.export.pipelines.export_plan import (
    DENOISER,
    PREDICTION,
    ExportPart,
    ExportPlan,
    guidance_inputs,
    sample_inputs,
    trial_sizes,
)
from stepfuse.export.pipelines.pipeline_folder import PipelineFolder
from stepfuse.export.pipelines.size import Size, own_size
from stepfuse.export.pipelines.text import CLIP, TextEncoders, read_encoder, text_part
from stepfuse.export.pipelines.unet import KIND, size_multiple, unet_config
from stepfuse.export.pipelines.vae import pixels_per_latent, vae_config, vae_parts
from stepfuse.extras import pip_install

try:
    import torch
except ImportError as error:
    raise ImportError(f"exporting needs torch ({error}): {pip_install('export')}") from error

TEXT = "encoder_hidden_states"
DATA_RANGE = (-4.0, 4.0)
LATENT_CONSISTENCY = "LatentConsistencyModelPipeline"


class TextUNetModule(ConditionedUNet):
    """diffusers' ``UNet2DConditionModel``."""

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        guidance: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Shape (R, C, h, w), (R,), (R, L, D) and, where guidance is embedded, (R,) to (R, C, h, w)."""
        embedded = self.timestep_cond(guidance)
        return self.unet(sample, timestep, encoder_hidden_states, timestep_cond=embedded, return_dict=False)[0]


class LastState(TextEncoders):
    """The normalised output of a CLIP text encoder's last layer."""

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Shape (R, L) to (R, L, D)."""
        [found] = self.encode([input_ids])
        return found.last_hidden_state


def plan(folder: PipelineFolder, size: Size) -> ExportPlan:
    """What is exported of the pipeline.

    Raises:
        ExportError: If a component is not covered, or ``size`` is none that the model takes.
    """
    vae, encoder = vae_config(folder), read_encoder(folder, 1, [CLIP])
    config = unet_config(folder, vae, None)
    width = encoder.config.number("hidden_size")
    config.require("cross_attention_dim", f"{width}, the text encoder's width", lambda value: value == width)
    channels, multiple, cell = config.number("in_channels"), size_multiple(config), pixels_per_latent(vae)
    shape = (channels, *own_size(config, size, multiple, cell=cell))
    text = (encoder.prompt.length, width)
    distilled = folder.class_name == LATENT_CONSISTENCY
    if distilled:
        config.number("time_cond_proj_dim")
    embedded = config["time_cond_proj_dim"] is not None
    guidance, guidance_cond = guidance_inputs(embedded)
    denoiser = ExportPart(
        DENOISER,
        {"unet": (KIND,)},
        TextUNetModule,
        [*sample_inputs(channels, multiple), Input(TEXT, text), *guidance],
        [PREDICTION],
        trial_sizes(shape, multiple),
        "unet.",
    )
    return ExportPlan(
        shape,
        PipelineInfo(folder.class_name, (encoder.prompt,), pixels_per_latent=cell, size_multiple=cell * multiple),
        [text_part([encoder], LastState, [TEXT]), denoiser, *vae_parts(vae, shape)],
        {TEXT: CondInput("float32", text, null=0.0), **guidance_cond},
        {"steps": 4, "guidance_scale": 8.5} if distilled else {"steps": 50, "guidance_scale": 7.5},
        {encoder.prompt.tokenizer: encoder.tokenizer},
        DATA_RANGE,
        "embedded" if embedded else "classifier_free",
    )
