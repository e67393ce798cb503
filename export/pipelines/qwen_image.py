"""``QwenImagePipeline`` (Wu et al., 2025): a two-stream transformer, flow matching, a video VAE, and Qwen 2.5 VL."""

from __future__ import annotations

from collections.abc import Mapping
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
from stepfuse.export.pipelines.pixart import MASK
from stepfuse.export.pipelines.rotary import Rotation, attend, rotated
from stepfuse.export.pipelines.size import Size, own_size
from stepfuse.export.pipelines.stable_diffusion import DATA_RANGE
from stepfuse.export.pipelines.text import TextEncoders, causal_mask, read_encoder, text_part
from stepfuse.export.pipelines.unet import TEXT
from stepfuse.export.pipelines.vae import VIDEO, latent_channels, pixels_per_latent, vae_config, vae_parts
from stepfuse.extras import pip_install

try:
    import torch
except ImportError as error:
    raise ImportError(f"exporting needs torch ({error}): {pip_install('export')}") from error

KIND, QWEN = "QwenImageTransformer2DModel", "Qwen2_5_VLForConditionalGeneration"
LENGTH = 512  # max_sequence_length of the pipeline's call
PATCH = 2


class QwenImageModule(torch.nn.Module):
    """diffusers' ``QwenImageTransformer2DModel`` on latents, whose patches of 2 x 2 it takes as tokens."""

    def __init__(self, transformer: Any) -> None:
        super().__init__()
        self.transformer = transformer
        transformer.pos_embed = _Positions(transformer.pos_embed)
        for block in transformer.transformer_blocks:
            block.attn.set_processor(_Processor())

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        encoder_attention_mask: torch.Tensor,
    ) -> torch.Tensor:
        """Shape (R, C, h, w), (R,), (R, L, D) and (R, L) to (R, C, h, w)."""
        rows, channels, height, width = sample.shape
        down, across = height // PATCH, width // PATCH
        patches = sample.reshape(rows, channels, down, PATCH, across, PATCH).permute(0, 2, 4, 1, 3, 5)
        found = self.transformer(
            hidden_states=patches.reshape(rows, down * across, channels * PATCH**2),
            encoder_hidden_states=encoder_hidden_states,
            encoder_hidden_states_mask=encoder_attention_mask > 0.5,
            timestep=timestep / 1000,
            img_shapes=(down, across),
            return_dict=False,
        )[0]
        found = found.reshape(rows, down, across, channels, PATCH, PATCH).permute(0, 3, 1, 4, 2, 5)
        return found.reshape(rows, channels, height, width)


class _Positions(torch.nn.Module):
    """diffusers' ``QwenEmbedRope`` for one picture: its middle is at 0, and the text follows at its corner."""

    def __init__(self, embedding: Any) -> None:
        super().__init__()
        for axis, width in enumerate(embedding.axes_dim):
            power = torch.arange(0, width, 2).to(torch.float32).div(width)
            self.register_buffer(f"frequency_{axis}", 1.0 / torch.pow(embedding.theta, power), persistent=False)

    def forward(
        self, img_shapes: tuple[int, int], max_txt_seq_len: int, device: torch.device
    ) -> tuple[Rotation, Rotation]:
        """Patches down and across, and tokens of the text, to the rotations of picture and text."""
        down, across = img_shapes
        one = torch.ones(1)
        row = torch.arange(down, dtype=torch.float32) - (down - down // 2)
        column = torch.arange(across, dtype=torch.float32) - (across - across // 2)
        of_row = row[:, None].expand(down, across).reshape(-1)
        of_column = column[None, :].expand(down, across).reshape(-1)
        start = torch.maximum(one * (down // 2), one * (across // 2))
        text = start + torch.arange(max_txt_seq_len, dtype=torch.float32)
        return self._rotation(torch.zeros_like(of_row), of_row, of_column), self._rotation(text, text, text)

    def _rotation(self, *positions: torch.Tensor) -> Rotation:
        axes = [one[:, None] * getattr(self, f"frequency_{axis}") for axis, one in enumerate(positions)]
        angle = torch.cat(axes, dim=-1)[None]
        return angle.cos(), angle.sin()


class _Processor:
    """Attention of a block, text and picture together, with positions in real numbers."""

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        encoder_hidden_states_mask: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: tuple[Rotation, Rotation] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        assert image_rotary_emb is not None
        of_picture, of_text = image_rotary_emb
        added = attn.add_q_proj, attn.add_k_proj, attn.add_v_proj
        text = _projected(attn, encoder_hidden_states, added, (attn.norm_added_q, attn.norm_added_k), of_text)
        own = attn.to_q, attn.to_k, attn.to_v
        picture = _projected(attn, hidden_states, own, (attn.norm_q, attn.norm_k), of_picture)
        query, key, value = (torch.cat(both, dim=1) for both in zip(text, picture, strict=True))
        is_read = torch.cat(
            [encoder_hidden_states_mask, torch.ones_like(hidden_states[..., 0], dtype=torch.bool)], dim=1
        )
        found = attend(query, key, value, is_read)
        tokens = encoder_hidden_states.shape[1]
        return attn.to_out[0](found[:, tokens:]), attn.to_add_out(found[:, :tokens])


def _projected(
    attn: Any, states: torch.Tensor, projections: tuple[Any, Any, Any], norms: tuple[Any, Any], rotation: Rotation
) -> list[torch.Tensor]:
    """Queries, keys and values of one stream, shape (R, tokens, heads, D), with their positions."""
    query, key, value = (project(states).unflatten(-1, (attn.heads, -1)) for project in projections)
    turned = [
        rotated(one if norm is None else norm(one), rotation) for one, norm in zip((query, key), norms, strict=True)
    ]
    return [*turned, value]


class DescribingStates(TextEncoders):
    """The last states of the language model but for the first tokens of the template, and the mask."""

    def __init__(self, encoders: Mapping[str, torch.nn.Module], *, dropped: int) -> None:
        super().__init__(encoders)
        self.dropped = dropped

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Shape (R, L) and (R, L) to (R, 512, D) and (R, 512)."""
        [encoder] = (getattr(self, name) for name in self.names)
        causal = causal_mask(ids)
        attention = {"full_attention": causal, "sliding_attention": causal}  # no context reaches beyond the window
        states = encoder.model.language_model(ids, attention_mask=attention, use_cache=False).last_hidden_state
        return states[:, self.dropped :], mask[:, self.dropped :].to(torch.float32)


def plan(folder: PipelineFolder, size: Size) -> ExportPlan:
    """What is exported of the pipeline.

    Raises:
        ExportError: If a component is not covered, or ``size`` is none that the model takes.
    """
    import diffusers

    config, vae = folder.config("transformer", KIND), vae_config(folder, VIDEO)
    for name in ("guidance_embeds", "zero_cond_t", "use_additional_t_cond", "use_layer3d_rope"):
        config.require(name, "false", lambda value: not value)
    pipeline = diffusers.QwenImagePipeline(None, None, None, None, None)  # which alone has the template
    prefix, suffix = pipeline.prompt_template_encode.split("{}")
    dropped: int = pipeline.prompt_template_encode_start_idx
    context = dropped + LENGTH
    encoder = read_encoder(folder, 1, [QWEN], context, mask="attention_mask", prefix=prefix, suffix=suffix)
    window = encoder.config.get("sliding_window")
    encoder.config.require("sliding_window", f"at least {context}", lambda _: window is None or window >= context)
    width = encoder.config.number("hidden_size")
    config.require("joint_attention_dim", f"{width}, the text encoder's hidden_size", lambda value: value == width)
    channels, cell = latent_channels(vae), pixels_per_latent(vae)
    config.require("patch_size", str(PATCH), lambda value: value == PATCH)
    inputs = channels * PATCH**2
    config.require("in_channels", f"{inputs}, {PATCH**2} times the VAE's z_dim", lambda value: value == inputs)
    config.require("out_channels", f"{channels}, the VAE's z_dim", lambda value: value == channels)
    sized = Config(config.name, {**config, "sample_size": pipeline.default_sample_size})
    shape = (channels, *own_size(sized, size, PATCH, cell=cell))
    text = (LENGTH, width)
    denoiser = ExportPart(
        DENOISER,
        {"transformer": (KIND,)},
        QwenImageModule,
        [*sample_inputs(channels, PATCH), Input(TEXT, text), Input(MASK, (LENGTH,), high=1)],
        [PREDICTION],
        trial_sizes(shape, PATCH),
        "transformer.",
    )
    return ExportPlan(
        shape,
        PipelineInfo(folder.class_name, (encoder.prompt,), pixels_per_latent=cell, size_multiple=cell * PATCH),
        [text_part([encoder], DescribingStates, [TEXT, MASK], dropped=dropped), denoiser, *vae_parts(vae, shape)],
        {TEXT: CondInput("float32", text, null=0.0), MASK: CondInput("float32", (LENGTH,), null=1.0)},
        # diffusers guides by a negative prompt alone, and then keeps the norm of each token
        {"steps": 50, "guidance_scale": 1.0, "spacing": "trailing", "cfg_renorm": PATCH},
        {encoder.prompt.tokenizer: encoder.tokenizer},
        DATA_RANGE,
    )
