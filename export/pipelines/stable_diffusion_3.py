"""``StableDiffusion3Pipeline`` (Esser et al., 2024): a transformer, flow matching, and up to three text encoders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from stepfuse.export.pipelines.positions import crop_positions
from stepfuse.export.pipelines.size import Size, own_size
from stepfuse.export.pipelines.stable_diffusion import DATA_RANGE
from stepfuse.export.pipelines.text import CLIP_PROJECTED, T5, TextEncoders, read_encoder, text_part
from stepfuse.export.pipelines.transformer_controlnet import (
    TransformerControlNets,
    encoded_control_cond,
    encoded_control_inputs,
    transformer_controlnets,
)
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
    """diffusers' ``SD3Transformer2DModel``, with the ControlNets whose residuals it adds.

    Args:
        transformer: The network.
        names: The graph's inputs, in their order.
        controls: ControlNets by name.
        shift: As for ``TransformerControlNets``.
    """

    def __init__(
        self, transformer: Any, names: Sequence[str], controls: Mapping[str, torch.nn.Module], shift: float
    ) -> None:
        super().__init__()
        self.names = tuple(names)
        self.transformer = transformer
        crop_positions(transformer.pos_embed)
        self.controls = TransformerControlNets(controls, transformer, shift) if controls else None

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Shape (R, C, h, w), (R,), (R, L, D), (R, P) and what ControlNets take, to (R, C, h, w)."""
        sample, timestep, text, pooled = inputs[:4]
        residuals = None
        if self.controls is not None:
            given = dict(zip(self.names, inputs, strict=True))
            residuals = self.controls(sample, timestep, text, pooled, given)
        found = self.transformer(
            sample, text, pooled, timestep, block_controlnet_hidden_states=residuals, return_dict=False
        )
        return found[0]


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


def plan(folder: PipelineFolder, size: Size, controls: Sequence[str] = ()) -> ExportPlan:
    """What is exported of the pipeline.

    Args:
        folder: The pipeline.
        size: Default size of pictures.
        controls: Components that are ControlNets.

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
    nets = transformer_controlnets(folder, controls, config)
    tables = [config, *(one for one in nets.values() if one["use_pos_embed"])]
    most = min(one.number("pos_embed_max_size") for one in tables)
    first = sample_inputs(channels, patch, max_size=most)
    inputs = [*first, Input(TEXT, text), Input(POOLED, (pooled,)), *encoded_control_inputs(controls, first[0])]
    shift = float(vae.get("shift_factor") or 0.0) * float(vae.get("scaling_factor", 1.0))

    def build(transformer: Any, *loaded: torch.nn.Module) -> torch.nn.Module:
        return SD3Module(transformer, [one.name for one in inputs], dict(zip(nets, loaded, strict=True)), shift)

    denoiser = ExportPart(
        DENOISER,
        {"transformer": (KIND,), **{name: (one.kind,) for name, one in nets.items()}},
        build,
        inputs,
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
            controls=tuple(controls),
            encoded_controls=bool(controls),
        ),
        [text_part(encoders, JoinedWithT5, [TEXT, POOLED], width=width), denoiser, *vae_parts(vae, shape)],
        {
            TEXT: CondInput("float32", text, null=0.0),
            POOLED: CondInput("float32", (pooled,), null=0.0),
            **encoded_control_cond(controls, shape),
        },
        {"steps": 28, "guidance_scale": 7.0},
        {one.prompt.tokenizer: one.tokenizer for one in encoders},
        DATA_RANGE,
    )
