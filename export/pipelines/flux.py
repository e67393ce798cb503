"""``FluxPipeline`` (Black Forest Labs, 2024): a transformer on patches of latents, flow matching, CLIP and T5.

The dev weights were distilled from guided predictions and take the scale as an input; the schnell weights take none.
Those of ``FluxFillPipeline`` take a picture without what is repainted, too, and the mask of that.
"""

from __future__ import annotations

import math
from typing import Any

from stepfuse.bundle.cond_input import CondInput
from stepfuse.bundle.pipeline_info import PipelineInfo
from stepfuse.export.onnx.inputs import Input
from stepfuse.export.pipelines.export_plan import (
    DENOISER,
    PREDICTION,
    ExportPart,
    ExportPlan,
    guidance_inputs,
    sample_inputs,
    trial_sizes,
)
from stepfuse.export.pipelines.pipeline_folder import Config, PipelineFolder
from stepfuse.export.pipelines.size import Size, own_size
from stepfuse.export.pipelines.stable_diffusion import DATA_RANGE
from stepfuse.export.pipelines.stable_diffusion_3 import POOLED
from stepfuse.export.pipelines.text import CLIP, T5, TextEncoders, read_encoder, text_part
from stepfuse.export.pipelines.unet import MASKED, TEXT
from stepfuse.export.pipelines.vae import pixels_per_latent, vae_config, vae_parts
from stepfuse.extras import pip_install

try:
    import torch
except ImportError as error:
    raise ImportError(f"exporting needs torch ({error}): {pip_install('export')}") from error

KIND = "FluxTransformer2DModel"
T5_LENGTH = 512  # max_sequence_length of the pipeline's call
SAMPLE_SIZE = 128  # of its latents, which no configuration says
PATCH = 2


class FluxModule(torch.nn.Module):
    """diffusers' ``FluxTransformer2DModel`` on latents, whose patches of 2 x 2 it takes as tokens."""

    def __init__(self, transformer: Any) -> None:
        super().__init__()
        self.transformer = transformer
        transformer.pos_embed = RotaryAngles(transformer.pos_embed)
        transformer.time_text_embed.time_proj = ScalePhases(transformer.time_text_embed.time_proj)

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        pooled_projections: torch.Tensor,
        guidance: torch.Tensor | None = None,
        masked_image: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Shape (R, C, h, w), (R,), (R, L, D), (R, P) and, where there are such inputs, (R,) and (R, M, h, w).

        Returns:
            Shape (R, C, h, w).
        """
        predicted = sample.shape[1]
        if masked_image is not None:
            sample = torch.cat([sample, masked_image], dim=1)
        rows, channels, height, width = sample.shape
        down, across = height // PATCH, width // PATCH
        patches = sample.reshape(rows, channels, down, PATCH, across, PATCH).permute(0, 2, 4, 1, 3, 5)
        places = torch.stack(
            [
                torch.zeros(down, across),
                torch.arange(down, dtype=torch.float32)[:, None].expand(down, across),
                torch.arange(across, dtype=torch.float32)[None, :].expand(down, across),
            ],
            dim=-1,
        )
        found = self.transformer(
            hidden_states=patches.reshape(rows, down * across, channels * PATCH**2),
            encoder_hidden_states=encoder_hidden_states,
            pooled_projections=pooled_projections,
            timestep=timestep / 1000,
            img_ids=places.reshape(down * across, 3),
            txt_ids=torch.zeros(encoder_hidden_states.shape[1], 3),
            guidance=guidance,
            return_dict=False,
        )[0]
        found = found.reshape(rows, down, across, predicted, PATCH, PATCH).permute(0, 3, 1, 4, 2, 5)
        return found.reshape(rows, predicted, height, width)


class RotaryAngles(torch.nn.Module):
    """diffusers' ``FluxPosEmbed`` in float32, since the operators of a graph have no sine in float64.

    Frequencies are rounded once, so at position 128, of 2048 pixels, an angle is at most 8e-6 off.
    """

    def __init__(self, embedding: Any) -> None:
        super().__init__()
        frequencies = [
            (embedding.theta ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)).repeat_interleave(2)
            for width in embedding.axes_dim
        ]
        self.widths = [len(one) for one in frequencies]
        self.register_buffer("frequencies", torch.cat(frequencies).float(), persistent=False)

    def forward(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Positions of shape (N, 3) to cosines and sines, (N, D) each."""
        axes = [ids[:, axis : axis + 1].expand(-1, width) for axis, width in enumerate(self.widths)]
        angles = torch.cat(axes, dim=-1) * self.frequencies
        return angles.cos(), angles.sin()


class ScalePhases(torch.nn.Module):
    """diffusers' ``Timesteps`` with frequencies that are computed once.

    The embedded guidance scale is multiplied by 1000 like the timestep, so phases reach ten thousand: the last bit of
    an exponential that a graph computes anew is then half a thousandth of a radian.
    """

    def __init__(self, projection: Any) -> None:
        super().__init__()
        half = projection.num_channels // 2
        exponents = -math.log(10000) * torch.arange(half, dtype=torch.float32)
        self.register_buffer("frequencies", torch.exp(exponents / (half - projection.downscale_freq_shift)), False)
        self.scale, self.cosine_first = projection.scale, projection.flip_sin_to_cos

    def forward(self, timesteps: torch.Tensor) -> torch.Tensor:
        """Shape (R,) to (R, D)."""
        phases = self.scale * (timesteps[:, None].float() * self.frequencies)
        parts = (phases.cos(), phases.sin()) if self.cosine_first else (phases.sin(), phases.cos())
        return torch.cat(parts, dim=-1)


class T5WithPooledClip(TextEncoders):
    """T5's last states, and CLIP's summary."""

    def forward(self, *ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Shape (R, L) for each encoder to (R, 512, D) and (R, P)."""
        clip, t5 = self.encode(ids)
        return t5.last_hidden_state, clip.pooler_output


def plan(folder: PipelineFolder, size: Size) -> ExportPlan:
    """What is exported of the pipeline.

    Raises:
        ExportError: If a component is not covered, or ``size`` is none that the model takes.
    """
    config, vae = folder.config("transformer", KIND), vae_config(folder)
    encoders = [read_encoder(folder, 1, [CLIP]), read_encoder(folder, 2, [T5], T5_LENGTH)]
    width, pooled = config.number("joint_attention_dim"), config.number("pooled_projection_dim")
    encoders[0].config.require("hidden_size", f"{pooled}, the transformer's", lambda value: value == pooled)
    encoders[1].config.require("d_model", f"{width}, the transformer's joint_attention_dim", lambda n: n == width)
    channels, cell = vae.number("latent_channels"), pixels_per_latent(vae)
    outputs, of_mask = channels * PATCH**2, channels + cell**2  # a mask has every pixel of a cell as a channel
    filling = outputs + of_mask * PATCH**2
    rule = f"{outputs}, {PATCH**2} times the VAE's latent_channels, or {filling} of the fill model"
    config.require("in_channels", rule, lambda n: n in (outputs, filling))
    fills = config["in_channels"] == filling
    config.require("out_channels", f"{outputs}", lambda n: n == outputs or (n is None and not fills))
    config.require("patch_size", "1", lambda value: value == 1)
    if fills:
        config.require("guidance_embeds", "true, as the fill model takes the scale", bool)
    embedded, scale = bool(config["guidance_embeds"]), 30.0 if fills else 3.5
    sized = Config(config.name, {**config, "sample_size": SAMPLE_SIZE})
    shape = (channels, *own_size(sized, size, PATCH, cell=cell))
    guidance, guidance_cond = guidance_inputs(embedded)
    masked = [Input(MASKED, (of_mask, f"{PATCH}*height", f"{PATCH}*width"))] if fills else []
    text = (T5_LENGTH, width)
    denoiser = ExportPart(
        DENOISER,
        {"transformer": (KIND,)},
        FluxModule,
        [*sample_inputs(channels, PATCH), Input(TEXT, text), Input(POOLED, (pooled,)), *guidance, *masked],
        [PREDICTION],
        trial_sizes(shape, PATCH),
        "transformer.",
    )
    return ExportPlan(
        shape,
        PipelineInfo(
            folder.class_name,
            tuple(one.prompt for one in encoders),
            pixels_per_latent=cell,
            size_multiple=cell * PATCH,
            masked_input=MASKED if fills else None,
        ),
        [text_part(encoders, T5WithPooledClip, [TEXT, POOLED]), denoiser, *vae_parts(vae, shape)],
        {
            TEXT: CondInput("float32", text, null=0.0),
            POOLED: CondInput("float32", (pooled,), null=0.0),
            **guidance_cond,
            **({MASKED: CondInput("float32", (of_mask, *shape[1:]), null=0.0, free="size")} if fills else {}),
        },
        {"steps": 50 if fills else 28, "spacing": "trailing", **({"guidance_scale": scale} if embedded else {})},
        {one.prompt.tokenizer: one.tokenizer for one in encoders},
        DATA_RANGE,
        "embedded" if embedded else "none",
    )
