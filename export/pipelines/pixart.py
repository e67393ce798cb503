"""``PixArtSigmaPipeline`` and ``PixArtAlphaPipeline`` (Chen et al., 2023 and 2024): a transformer and a T5."""

from __future__ import annotations

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
from stepfuse.export.pipelines.pipeline_folder import Config, PipelineFolder
from stepfuse.export.pipelines.positions import embed_patches
from stepfuse.export.pipelines.size import Size, own_size
from stepfuse.export.pipelines.stable_diffusion import DATA_RANGE
from stepfuse.export.pipelines.text import T5, TextEncoders, read_encoder, text_part
from stepfuse.export.pipelines.unet import TEXT
from stepfuse.export.pipelines.vae import pixels_per_latent, vae_config, vae_parts
from stepfuse.extras import pip_install

try:
    import torch
except ImportError as error:
    raise ImportError(f"exporting needs torch ({error}): {pip_install('export')}") from error

KIND = "PixArtTransformer2DModel"
FORMER_KIND = "Transformer2DModel"  # what published folders call it
MASK = "encoder_attention_mask"
LENGTHS = {"PixArtAlphaPipeline": 120, "PixArtSigmaPipeline": 300}  # max_sequence_length of each pipeline's call


class PixArtModule(torch.nn.Module):
    """diffusers' ``PixArtTransformer2DModel`` without the variance that it predicts beside the noise.

    Args:
        transformer: The network.
        cell: Pixels a side of one cell of a sample, for a network that is conditioned on the picture's size.
    """

    def __init__(self, transformer: Any, cell: int) -> None:
        super().__init__()
        self.transformer, self.cell = transformer, cell
        self.channels = transformer.config.in_channels
        transformer.pos_embed.forward = partial(embed_patches, transformer.pos_embed)

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        encoder_attention_mask: torch.Tensor,
    ) -> torch.Tensor:
        """Shape (R, C, h, w), (R,), (R, L, D) and (R, L) to (R, C, h, w)."""
        added: dict[str, torch.Tensor | None] = {"resolution": None, "aspect_ratio": None}
        if self.transformer.use_additional_conditions:
            one = sample.new_ones(sample.shape[0], 1)
            height, width = (one * (side * self.cell) for side in sample.shape[-2:])
            added = {"resolution": torch.cat([height, width], dim=1), "aspect_ratio": height / width}
        found = self.transformer(
            sample,
            encoder_hidden_states,
            timestep,
            added,
            encoder_attention_mask=encoder_attention_mask,
            return_dict=False,
        )
        return found[0][:, : self.channels]


class MaskedStates(TextEncoders):
    """The last states of a text encoder that is given its attention mask, and the mask."""

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Shape (R, L) and (R, L) to (R, L, D) and (R, L)."""
        [encoder] = (getattr(self, name) for name in self.names)
        return encoder(ids, attention_mask=mask).last_hidden_state, mask.to(torch.float32)


def plan(folder: PipelineFolder, size: Size) -> ExportPlan:
    """What is exported of the pipeline.

    Raises:
        ExportError: If a component is not covered, or ``size`` is none that the model takes.
    """
    config, vae = folder.config("transformer", KIND, FORMER_KIND), vae_config(folder)
    _require_size_condition(config, folder.class_name)
    length = LENGTHS[folder.class_name]
    encoder = read_encoder(folder, 1, [T5], length, mask="attention_mask", lowercase=True)
    width = encoder.config.number("d_model")
    config.require("caption_channels", f"{width}, the text encoder's d_model", lambda value: value == width)
    config.require("norm_type", "'ada_norm_single'", lambda value: value == "ada_norm_single")
    channels, patch, cell = config.number("in_channels"), config.number("patch_size"), pixels_per_latent(vae)
    vae.require("latent_channels", f"{channels}, the transformer's", lambda value: value == channels)
    allowed = channels, 2 * channels
    config.require("out_channels", " or ".join(map(str, allowed)), lambda value: value in (None, *allowed))
    shape = (channels, *own_size(config, size, patch, cell=cell))
    text = (length, width)
    denoiser = ExportPart(
        DENOISER,
        {"transformer": (KIND, FORMER_KIND)},
        lambda transformer: PixArtModule(transformer, cell),
        [*sample_inputs(channels, patch), Input(TEXT, text), Input(MASK, (length,), low=0.999, high=1)],
        [PREDICTION],
        trial_sizes(shape, patch),
        "transformer.",
    )
    return ExportPlan(
        shape,
        PipelineInfo(folder.class_name, (encoder.prompt,), pixels_per_latent=cell, size_multiple=cell * patch),
        [text_part([encoder], MaskedStates, [TEXT, MASK]), denoiser, *vae_parts(vae, shape)],
        {TEXT: CondInput("float32", text, null=0.0), MASK: CondInput("float32", (length,), null=1.0)},
        {"steps": 20, "guidance_scale": 4.5},
        {encoder.prompt.tokenizer: encoder.tokenizer},
        DATA_RANGE,
    )


def _require_size_condition(config: Config, pipeline: str) -> None:
    """The pipeline of PixArt-alpha gives the picture's size to networks of 1024 pixels, and that of Sigma to none."""
    given, own = config["use_additional_conditions"], config["sample_size"] == 128
    if (own if given is None else given) and not (own and pipeline == "PixArtAlphaPipeline"):
        config.require("use_additional_conditions", f"false in a {pipeline} of this sample_size", lambda _: False)
