"""``StableDiffusionPipeline``: Stable Diffusion 1.x and 2.x (Rombach et al., 2022), inpainting and LCM among them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from stepfuse.bundle.pipeline_info import PipelineInfo
from stepfuse.export.pipelines.controlnet import control_cond, controlnet_configs
from stepfuse.export.pipelines.export_plan import ExportPlan, guidance_inputs
from stepfuse.export.pipelines.pipeline_folder import PipelineFolder
from stepfuse.export.pipelines.size import Size, own_size
from stepfuse.export.pipelines.text import CLIP, TextEncoders, read_encoder, require_layers, text_part
from stepfuse.export.pipelines.unet import MASKED, TEXT, denoiser_part, masked_cond, text_cond, unet_config
from stepfuse.export.pipelines.vae import pixels_per_latent, vae_config, vae_parts
from stepfuse.extras import pip_install

try:
    import torch
except ImportError as error:
    raise ImportError(f"exporting needs torch ({error}): {pip_install('export')}") from error

DATA_RANGE = (-4.0, 4.0)
LATENT_CONSISTENCY = "LatentConsistencyModelPipeline"


class LastState(TextEncoders):
    """The normalised output of a CLIP text encoder's last layer.

    Args:
        encoders: The encoder by name.
        clip_skip: Layers at the end that are left out.
    """

    def __init__(self, encoders: Any, clip_skip: int = 0) -> None:
        super().__init__(encoders)
        self.clip_skip = clip_skip

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Shape (R, L) to (R, L, D)."""
        [found] = self.encode([input_ids])
        if not self.clip_skip:
            return found.last_hidden_state
        encoder = getattr(self, self.names[0])
        norm = getattr(encoder, "text_model", encoder).final_layer_norm  # of transformers before 5, and of it
        return norm(found.hidden_states[-1 - self.clip_skip])


def plan(folder: PipelineFolder, size: Size, controls: Sequence[str] = (), clip_skip: int = 0) -> ExportPlan:
    """What is exported of the pipeline.

    Args:
        folder: The pipeline.
        size: Default size of pictures.
        controls: Components that are ControlNets.
        clip_skip: Layers of the text encoder that are left out.

    Raises:
        ExportError: If a component is not covered, or ``size`` is none that the model takes.
    """
    vae, encoder = vae_config(folder), read_encoder(folder, 1, [CLIP])
    require_layers(encoder, clip_skip)
    config = unet_config(folder, vae, None)
    width = encoder.config.number("hidden_size")
    config.require("cross_attention_dim", f"{width}, the text encoder's width", lambda value: value == width)
    cell = pixels_per_latent(vae)
    shape = (config.number("out_channels"), *own_size(config, size, 1, cell=cell))
    masked = masked_cond(config, shape)
    distilled = folder.class_name == LATENT_CONSISTENCY
    if distilled:
        config.number("time_cond_proj_dim")
    embedded = config["time_cond_proj_dim"] is not None
    of_text = {TEXT: text_cond(encoder.prompt.length, width)}
    cond = {**of_text, **masked, **control_cond(controls, shape, cell), **guidance_inputs(embedded)[1]}
    return ExportPlan(
        shape,
        PipelineInfo(
            folder.class_name,
            (encoder.prompt,),
            pixels_per_latent=cell,
            size_multiple=cell,
            masked_input=MASKED if masked else None,
            controls=tuple(controls),
        ),
        [
            text_part([encoder], partial(LastState, clip_skip=clip_skip), [TEXT]),
            denoiser_part(config, shape, cond, cell, controlnet_configs(folder, controls, config, cell)),
            *vae_parts(vae, shape),
        ],
        cond,
        {"steps": 4, "guidance_scale": 8.5} if distilled else {"steps": 50, "guidance_scale": 7.5},
        {encoder.prompt.tokenizer: encoder.tokenizer},
        DATA_RANGE,
        "embedded" if embedded else "classifier_free",
    )
