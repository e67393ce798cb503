"""``StableDiffusionXLPipeline`` (Podell et al., 2023): two text encoders, a UNet conditioned on the picture's size."""

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
from stepfuse.export.pipelines.stable_diffusion import DATA_RANGE, TEXT
from stepfuse.export.pipelines.text import CLIP, CLIP_PROJECTED, TextEncoders, read_encoder, text_part
from stepfuse.export.pipelines.unet import KIND, size_multiple, unet_config
from stepfuse.export.pipelines.vae import pixels_per_latent, vae_config, vae_parts
from stepfuse.extras import pip_install

try:
    import torch
except ImportError as error:
    raise ImportError(f"exporting needs torch ({error}): {pip_install('export')}") from error

POOLED, SIZE = "text_embeds", "time_ids"


class XLUNetModule(ConditionedUNet):
    """diffusers' ``UNet2DConditionModel`` with what XL adds to it."""

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        text_embeds: torch.Tensor,
        time_ids: torch.Tensor,
        guidance: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Shape (R, C, h, w), (R,), (R, L, D), (R, P), (R, 6) and, where it is embedded, (R,) to (R, C, h, w)."""
        return self.unet(
            sample,
            timestep,
            encoder_hidden_states,
            timestep_cond=self.timestep_cond(guidance),
            added_cond_kwargs={POOLED: text_embeds, SIZE: time_ids},
            return_dict=False,
        )[0]


class JoinedEncoders(TextEncoders):
    """The penultimate states of all encoders side by side, and the pooled projection of the last."""

    def forward(self, *ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Shape (R, L) for each encoder to (R, L, D) and (R, P)."""
        found = self.encode(ids)
        return torch.cat([one.hidden_states[-2] for one in found], dim=-1), found[-1].text_embeds


def plan(folder: PipelineFolder, size: Size) -> ExportPlan:
    """What is exported of the pipeline.

    Raises:
        ExportError: If a component is not covered, or ``size`` is none that the model takes.
    """
    vae = vae_config(folder)
    first = read_encoder(folder, 1, [CLIP])
    encoders = [first, read_encoder(folder, 2, [CLIP_PROJECTED], first.prompt.length)]
    config = unet_config(folder, vae, "text_time")
    width = sum(one.config.number("hidden_size") for one in encoders)
    pooled = encoders[-1].config.number("projection_dim")
    config.require("cross_attention_dim", f"{width}, the text encoders' width", lambda value: value == width)
    added = pooled + 6 * config.number("addition_time_embed_dim")
    config.require("projection_class_embeddings_input_dim", f"{added} for six sizes", lambda value: value == added)
    channels, multiple, cell = config.number("in_channels"), size_multiple(config), pixels_per_latent(vae)
    shape = (channels, *own_size(config, size, multiple, cell=cell))
    text = (encoders[-1].prompt.length, width)
    embedded = config["time_cond_proj_dim"] is not None
    guidance, guidance_cond = guidance_inputs(embedded)
    denoiser = ExportPart(
        DENOISER,
        {"unet": (KIND,)},
        XLUNetModule,
        [
            *sample_inputs(channels, multiple),
            Input(TEXT, text),
            Input(POOLED, (pooled,)),
            Input(SIZE, (6,), high=1024),
            *guidance,
        ],
        [PREDICTION],
        trial_sizes(shape, multiple),
        "unet.",
    )
    return ExportPlan(
        shape,
        PipelineInfo(
            folder.class_name,
            tuple(one.prompt for one in encoders),
            pixels_per_latent=cell,
            size_multiple=cell * multiple,
            size_input=SIZE,
            zeros_without_negative=bool(folder.index.get("force_zeros_for_empty_prompt", True)),
        ),
        [text_part(encoders, JoinedEncoders, [TEXT, POOLED]), denoiser, *vae_parts(vae, shape, upcast=True)],
        {
            TEXT: CondInput("float32", text, null=0.0),
            POOLED: CondInput("float32", (pooled,), null=0.0),
            SIZE: CondInput("float32", (6,), null=0.0),
            **guidance_cond,
        },
        {"steps": 50, "guidance_scale": 5.0},
        {one.prompt.tokenizer: one.tokenizer for one in encoders},
        DATA_RANGE,
        "embedded" if embedded else "classifier_free",
    )
