"""``SanaPipeline`` (Xie et al., 2024): a linear transformer, a deep-compression autoencoder, and Gemma 2."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
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
from stepfuse.export.pipelines.linear_attention import LinearProcessor
from stepfuse.export.pipelines.pipeline_folder import PipelineFolder
from stepfuse.export.pipelines.pixart import MASK
from stepfuse.export.pipelines.positions import embed_patches
from stepfuse.export.pipelines.size import Size, own_size
from stepfuse.export.pipelines.stable_diffusion import DATA_RANGE
from stepfuse.export.pipelines.text import TextEncoders, causal_mask, read_encoder, text_part
from stepfuse.export.pipelines.tokenizer import load_tokenizer
from stepfuse.export.pipelines.unet import TEXT
from stepfuse.export.pipelines.vae import DEEP_COMPRESSION, pixels_per_latent, vae_config, vae_parts
from stepfuse.extras import pip_install

try:
    import torch
except ImportError as error:
    raise ImportError(f"exporting needs torch ({error}): {pip_install('export')}") from error

KIND, GEMMA = "SanaTransformer2DModel", "Gemma2Model"
LENGTH = 300  # max_sequence_length of the pipeline's call


class SanaModule(torch.nn.Module):
    """diffusers' ``SanaTransformer2DModel``, without the variance that it may predict."""

    def __init__(self, transformer: Any) -> None:
        super().__init__()
        self.transformer = transformer
        self.channels = transformer.config.in_channels
        if transformer.patch_embed.pos_embed is not None:
            transformer.patch_embed.forward = partial(embed_patches, transformer.patch_embed)
        for block in transformer.transformer_blocks:
            block.attn1.set_processor(LinearProcessor())

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        encoder_attention_mask: torch.Tensor,
    ) -> torch.Tensor:
        """Shape (R, C, h, w), (R,), (R, L, D) and (R, L) to (R, C, h, w)."""
        found = self.transformer(
            sample,
            encoder_hidden_states,
            timestep * self.transformer.config.timestep_scale,
            encoder_attention_mask=encoder_attention_mask,
            return_dict=False,
        )
        return found[0][:, : self.channels]


class InstructedStates(TextEncoders):
    """The last states of Gemma for the first token and the last of the context, and their mask.

    A negative prompt, which has no instruction before it, is given that many tokens, all of which are kept.
    """

    def __init__(self, encoders: Mapping[str, torch.nn.Module], *, length: int) -> None:
        super().__init__(encoders)
        self.length = length

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Shape (R, L) and (R, L) to (R, 300, D) and (R, 300)."""
        [encoder] = (getattr(self, name) for name in self.names)
        causal = causal_mask(ids)
        attention = {"full_attention": causal, "sliding_attention": causal}  # no context reaches beyond the window
        states = encoder(ids, attention_mask=attention, use_cache=False).last_hidden_state
        kept = self.length - 1
        index = torch.cat([torch.zeros(1, dtype=torch.int64), torch.arange(kept) + (ids.shape[1] - kept)])
        return states.index_select(1, index), mask.index_select(1, index).to(torch.float32)


def plan(folder: PipelineFolder, size: Size) -> ExportPlan:
    """What is exported of the pipeline.

    Raises:
        ExportError: If a component is not covered, or ``size`` is none that the model takes.
    """
    import diffusers

    config, vae = folder.config("transformer", KIND), vae_config(folder, DEEP_COMPRESSION)
    config.require("guidance_embeds", "false, as Sana Sprint's networks have it true", lambda value: not value)
    tokenizer = load_tokenizer(folder, "tokenizer")
    tokenizer.padding_side = "right"  # as the pipeline sets it
    parameters = inspect.signature(diffusers.SanaPipeline.__call__).parameters
    instruction = "\n".join(parameters["complex_human_instruction"].default)
    context = len(tokenizer.encode(instruction)) + LENGTH - 2
    asked = {"tokenizer": tokenizer, "mask": "attention_mask", "lowercase": True}
    encoder = read_encoder(folder, 1, [GEMMA], context, prefix=instruction, **asked)
    negative = read_encoder(folder, 1, [GEMMA], LENGTH, **asked)
    encoder.config.require("sliding_window", f"at least {context}", lambda value: value is None or value >= context)
    width = encoder.config.number("hidden_size")
    config.require("caption_channels", f"{width}, the text encoder's hidden_size", lambda value: value == width)
    channels, patch, cell = config.number("in_channels"), config.number("patch_size"), pixels_per_latent(vae)
    vae.require("latent_channels", f"{channels}, the transformer's", lambda value: value == channels)
    allowed = channels, 2 * channels
    config.require("out_channels", " or ".join(map(str, allowed)), lambda value: value in (None, *allowed))
    shape = (channels, *own_size(config, size, patch, cell=cell))
    text = (LENGTH, width)
    inputs = [
        Input("input_ids", ("tokens",), "int64", high=encoder.config.number("vocab_size")),
        Input("attention_mask", ("tokens",), "int64"),
    ]
    encoder_part = text_part([encoder], InstructedStates, [TEXT, MASK], length=LENGTH)
    denoiser = ExportPart(
        DENOISER,
        {"transformer": (KIND,)},
        SanaModule,
        [*sample_inputs(channels, patch), Input(TEXT, text), Input(MASK, (LENGTH,), low=0.999, high=1)],
        [PREDICTION],
        trial_sizes(shape, patch),
        "transformer.",
    )
    return ExportPlan(
        shape,
        PipelineInfo(
            folder.class_name,
            (encoder.prompt,),
            pixels_per_latent=cell,
            size_multiple=cell * patch,
            negative_prompts=(negative.prompt,),
        ),
        [replace(encoder_part, inputs=inputs, sizes={"tokens": (context, LENGTH)}), denoiser, *vae_parts(vae, shape)],
        {TEXT: CondInput("float32", text, null=0.0), MASK: CondInput("float32", (LENGTH,), null=1.0)},
        {"steps": 20, "guidance_scale": 4.5},
        {encoder.prompt.tokenizer: encoder.tokenizer},
        DATA_RANGE,
    )
