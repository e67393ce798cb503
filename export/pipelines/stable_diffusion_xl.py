"""``StableDiffusionXLPipeline`` (Podell et al., 2023): text encoders side by side, a UNet conditioned on the size.

The refiner has the second text encoder alone, and aesthetic scores in the place of the target size.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from stepfuse.bundle.cond_input import CondInput
from stepfuse.bundle.pipeline_info import PipelineInfo
from stepfuse.export.pipelines.controlnet import control_cond, controlnet_configs
from stepfuse.export.pipelines.export_plan import ExportPlan, guidance_inputs
from stepfuse.export.pipelines.pipeline_folder import PipelineFolder
from stepfuse.export.pipelines.size import Size, own_size
from stepfuse.export.pipelines.stable_diffusion import DATA_RANGE
from stepfuse.export.pipelines.text import (
    CLIP,
    CLIP_PROJECTED,
    TextEncoderInfo,
    TextEncoders,
    read_encoder,
    require_layers,
    text_part,
)
from stepfuse.export.pipelines.unet import (
    MASKED,
    POOLED,
    SIZE,
    TEXT,
    denoiser_part,
    masked_cond,
    text_cond,
    unet_config,
)
from stepfuse.export.pipelines.vae import pixels_per_latent, vae_config, vae_parts
from stepfuse.extras import pip_install

try:
    import torch
except ImportError as error:
    raise ImportError(f"exporting needs torch ({error}): {pip_install('export')}") from error

#: Of a picture and of guidance's other pass, as diffusers' pipelines have them unless a call says otherwise.
AESTHETIC_SCORES = (6.0, 2.5)


class JoinedEncoders(TextEncoders):
    """The penultimate states of all encoders side by side, and the pooled projection of the last.

    Args:
        encoders: Text encoders by name.
        clip_skip: Layers before the last that are left out, too.
    """

    def __init__(self, encoders: Any, clip_skip: int = 0) -> None:
        super().__init__(encoders)
        self.clip_skip = clip_skip

    def forward(self, *ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Shape (R, L) for each encoder to (R, L, D) and (R, P)."""
        found = self.encode(ids)
        states = [one.hidden_states[-2 - self.clip_skip] for one in found]
        return torch.cat(states, dim=-1), found[-1].text_embeds


def plan(folder: PipelineFolder, size: Size, controls: Sequence[str] = (), clip_skip: int = 0) -> ExportPlan:
    """What is exported of the pipeline.

    Args:
        folder: The pipeline.
        size: Default size of pictures.
        controls: Components that are ControlNets.
        clip_skip: Layers of each text encoder that are left out.

    Raises:
        ExportError: If a component is not covered, or ``size`` is none that the model takes.
    """
    vae, encoders = vae_config(folder), _encoders(folder)
    for one in encoders:
        require_layers(one, clip_skip + 1)
    config = unet_config(folder, vae, "text_time")
    width = sum(one.config.number("hidden_size") for one in encoders)
    pooled = encoders[-1].config.number("projection_dim")
    config.require("cross_attention_dim", f"{width}, the text encoders' width", lambda value: value == width)
    scores = AESTHETIC_SCORES if folder.index.get("requires_aesthetics_score") else None
    sizes = 6 if scores is None else 5
    added = pooled + sizes * config.number("addition_time_embed_dim")
    config.require("projection_class_embeddings_input_dim", f"{added} for {sizes} sizes", lambda value: value == added)
    cell = pixels_per_latent(vae)
    shape = (config.number("out_channels"), *own_size(config, size, 1, cell=cell))
    masked = masked_cond(config, shape)
    embedded = config["time_cond_proj_dim"] is not None
    cond = {
        TEXT: text_cond(encoders[-1].prompt.length, width),
        POOLED: CondInput("float32", (pooled,), null=0.0),
        SIZE: CondInput("float32", (sizes,), null=0.0),
        **masked,
        **control_cond(controls, shape, cell),
        **guidance_inputs(embedded)[1],
    }
    return ExportPlan(
        shape,
        PipelineInfo(
            folder.class_name,
            tuple(one.prompt for one in encoders),
            pixels_per_latent=cell,
            size_multiple=cell,
            size_input=SIZE,
            zeros_without_negative=bool(folder.index.get("force_zeros_for_empty_prompt", True)),
            aesthetic_scores=scores,
            masked_input=MASKED if masked else None,
            controls=tuple(controls),
        ),
        [
            text_part(encoders, partial(JoinedEncoders, clip_skip=clip_skip), [TEXT, POOLED]),
            denoiser_part(config, shape, cond, cell, controlnet_configs(folder, controls, config, cell)),
            *vae_parts(vae, shape, upcast=True),
        ],
        cond,
        {"steps": 50, "guidance_scale": 7.5 if folder.class_name == "StableDiffusionXLInpaintPipeline" else 5.0},
        {one.prompt.tokenizer: one.tokenizer for one in encoders},
        DATA_RANGE,
        "embedded" if embedded else "classifier_free",
    )


def _encoders(folder: PipelineFolder) -> list[TextEncoderInfo]:
    """Both text encoders, or the second alone, as the refiner has it."""
    if not folder.has("text_encoder"):
        return [read_encoder(folder, 2, [CLIP_PROJECTED])]
    first = read_encoder(folder, 1, [CLIP])
    return [first, read_encoder(folder, 2, [CLIP_PROJECTED], first.prompt.length)]
