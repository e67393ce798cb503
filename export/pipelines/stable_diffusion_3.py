"""``StableDiffusion3Pipeline`` (Esser et al., 2024): a transformer, flow matching, and up to three text encoders."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from stepfuse.bundle.cond_input import CondInput
from stepfuse.bundle.pipeline_info import PipelineInfo
from stepfuse.export.onnx.inputs import Input
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
from stepfuse.export.pipelines.stable_diffusion import DATA_RANGE
from stepfuse.export.pipelines.text import CLIP_PROJECTED, T5, TextEncoders, read_encoder, text_part
from stepfuse.export.pipelines.unet import TEXT
from stepfuse.export.pipelines.vae import pixels_per_latent, vae_config, vae_parts
from stepfuse.extras import pip_install

try:
    import torch
except ImportError as error:
    raise ImportError(f"exporting needs torch ({error}): {pip_install('export')}") from error

KIND = "SD3Transformer2DModel"
POOLED = "pooled_projections"
T5_LENGTH = 256  # max_sequence_length of the pipeline's call


class SD3Module(torch.nn.Module):
    """diffusers' ``SD3Transformer2DModel``."""

    def __init__(self, transformer: Any) -> None:
        super().__init__()
        self.transformer = transformer
        transformer.pos_embed.cropped_pos_embed = partial(_crop, transformer.pos_embed)

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        pooled_projections: torch.Tensor,
    ) -> torch.Tensor:
        """Shape (R, C, h, w), (R,), (R, L, D) and (R, P) to (R, C, h, w)."""
        found = self.transformer(sample, encoder_hidden_states, pooled_projections, timestep, return_dict=False)
        return found[0]


def _crop(embedding: Any, height: int, width: int) -> torch.Tensor:
    """The middle of the position embeddings for a sample of this size, as diffusers' own ``cropped_pos_embed``.

    That begins at ``(most - rows) // 2``, which torch rewrites to divide ``-rows``, while the exported graph rounds
    quotients towards zero. Here no dividend is negative.
    """
    most, patch = embedding.pos_embed_max_size, embedding.patch_size
    rows, columns = height // patch, width // patch
    top, left = (most // 2 - (size + 1 - most % 2) // 2 for size in (rows, columns))
    grid = embedding.pos_embed.reshape(1, most, most, -1)
    cut = grid[:, top : top + rows, left : left + columns]
    return cut.reshape(1, rows * columns, -1)


class JoinedWithT5(TextEncoders):
    """The penultimate states of both CLIPs side by side, padded with zeros, then T5's last states or zeros."""

    def __init__(self, encoders: Mapping[str, torch.nn.Module], *, width: int) -> None:
        super().__init__(encoders)
        self.width = width

    def forward(self, *ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Shape (R, L) for each encoder to (R, L + 256, D) and (R, P)."""
        first, second, *third = self.encode(ids)
        text = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        text = torch.nn.functional.pad(text, (0, self.width - text.shape[-1]))
        rest = third[0].last_hidden_state if third else text.new_zeros(text.shape[0], T5_LENGTH, self.width)
        return torch.cat([text, rest], dim=-2), torch.cat([first.text_embeds, second.text_embeds], dim=-1)


def plan(folder: PipelineFolder, size: Size) -> ExportPlan:
    """What is exported of the pipeline.

    Raises:
        ExportError: If a component is not covered, or ``size`` is none that the model takes.
    """
    config, vae = folder.config("transformer", KIND), vae_config(folder)
    encoders = [read_encoder(folder, 1, [CLIP_PROJECTED])]
    length = encoders[0].prompt.length
    encoders.append(read_encoder(folder, 2, [CLIP_PROJECTED], length))
    if folder.has("text_encoder_3"):
        encoders.append(read_encoder(folder, 3, [T5], T5_LENGTH))
    width, pooled = config.number("joint_attention_dim"), config.number("pooled_projection_dim")
    for one in encoders[2:]:
        one.config.require("d_model", f"{width}, the transformer's joint_attention_dim", lambda value: value == width)
    widths = sum(one.config.number("hidden_size") for one in encoders[:2])
    config.require("joint_attention_dim", f"at least {widths}, CLIP's width", lambda value: value >= widths)
    projected = sum(one.config.number("projection_dim") for one in encoders[:2])
    config.require("pooled_projection_dim", f"{projected}, CLIP's", lambda value: value == projected)
    channels, patch, cell = config.number("in_channels"), config.number("patch_size"), pixels_per_latent(vae)
    vae.require("latent_channels", f"{channels}, the transformer's", lambda value: value == channels)
    config.require("out_channels", f"in_channels, {channels}", lambda value: value in (None, channels))
    shape = (channels, *own_size(config, size, patch, cell=cell))
    text = (length + T5_LENGTH, width)
    most = config.number("pos_embed_max_size")
    denoiser = ExportPart(
        DENOISER,
        {"transformer": (KIND,)},
        SD3Module,
        [*sample_inputs(channels, patch, max_size=most), Input(TEXT, text), Input(POOLED, (pooled,))],
        [PREDICTION],
        trial_sizes(shape, patch),
        "transformer.",
    )
    return ExportPlan(
        shape,
        PipelineInfo(
            folder.class_name,
            tuple(one.prompt for one in encoders),
            pixels_per_latent=cell,
            size_multiple=cell * patch,
            max_size=most * patch * cell,
        ),
        [text_part(encoders, JoinedWithT5, [TEXT, POOLED], width=width), denoiser, *vae_parts(vae, shape)],
        {TEXT: CondInput("float32", text, null=0.0), POOLED: CondInput("float32", (pooled,), null=0.0)},
        {"steps": 28, "guidance_scale": 7.0},
        {one.prompt.tokenizer: one.tokenizer for one in encoders},
        DATA_RANGE,
    )
