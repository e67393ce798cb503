"""``ZImagePipeline`` (Z-Image, 2025): a single-stream transformer, flow matching, and Qwen 3 with its chat template."""

from __future__ import annotations

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
from stepfuse.export.pipelines.tokenizer import chat_template, load_tokenizer
from stepfuse.export.pipelines.unet import TEXT
from stepfuse.export.pipelines.vae import pixels_per_latent, vae_config, vae_parts
from stepfuse.extras import pip_install

try:
    import torch
except ImportError as error:
    raise ImportError(f"exporting needs torch ({error}): {pip_install('export')}") from error

KIND, QWEN = "ZImageTransformer2DModel", ("Qwen3Model", "Qwen3ForCausalLM")
LENGTH = 512  # max_sequence_length of the pipeline's call
SAMPLE_SIZE = 128  # of the pipeline's call, which no configuration says
PATCH, BLOCK = 2, 32  # cells a side of a patch; tokens are padded to a multiple of the second


class ZImageModule(torch.nn.Module):
    """diffusers' ``ZImageTransformer2DModel`` on a batch of one size, with captions of one length and their mask.

    Its timesteps rise from noise to data, and it predicts the way to the data: here both are turned round. Captions and
    pictures are padded to whole blocks with tokens that it has learned, which attention reads; what a caption leaves of
    its context is not read.
    """

    def __init__(self, transformer: Any) -> None:
        super().__init__()
        self.transformer = transformer
        embedder = transformer.rope_embedder
        tables = embedder.precompute_freqs_cis(embedder.axes_dims, embedder.axes_lens, theta=embedder.theta)
        for axis, table in enumerate(tables):
            self.register_buffer(f"cos_{axis}", table.real.clone(), persistent=False)
            self.register_buffer(f"sin_{axis}", table.imag.clone(), persistent=False)
        for block in (*transformer.noise_refiner, *transformer.context_refiner, *transformer.layers):
            block.attention.set_processor(_Processor())

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        encoder_attention_mask: torch.Tensor,
    ) -> torch.Tensor:
        """Shape (R, C, h, w), (R,), (R, L, D) and (R, L) to (R, C, h, w)."""
        network, kind = self.transformer, f"{PATCH}-1"
        time = network.t_embedder((1000 - timestep) / 1000 * network.t_scale)
        caption, caption_rotation, is_caption, end = self._caption(encoder_hidden_states, encoder_attention_mask)
        for block in network.context_refiner:
            caption = block(caption, is_caption, caption_rotation)
        rows, channels, height, width = sample.shape
        down, across = height // PATCH, width // PATCH
        patches = sample.reshape(rows, channels, down, PATCH, across, PATCH).permute(0, 2, 4, 3, 5, 1)
        tokens = network.all_x_embedder[kind](patches.reshape(rows, down * across, PATCH * PATCH * channels))
        tokens, rotation = self._picture(tokens, down, across, end + 1)
        for block in network.noise_refiner:
            tokens = block(tokens, None, rotation, time)
        is_read = torch.cat([torch.ones_like(tokens[..., 0], dtype=torch.bool), is_caption], dim=1)
        joint = torch.cat([tokens, caption], dim=1)
        joint_rotation = tuple(torch.cat(both, dim=1) for both in zip(rotation, caption_rotation, strict=True))
        for block in network.layers:
            joint = block(joint, is_read, joint_rotation, time)
        found = network.all_final_layer[kind](joint, c=time).index_select(1, torch.arange(down * across))
        found = found.reshape(rows, down, across, PATCH, PATCH, channels).permute(0, 5, 1, 3, 2, 4)
        return -found.reshape(rows, channels, height, width)

    def _caption(
        self, states: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, Rotation, torch.Tensor, torch.Tensor]:
        """Its tokens, their rotation, which of them are read, and the position of the last of these, shape (R,)."""
        count = (mask > 0.5).sum(dim=1).clamp(min=1)
        end = (count + BLOCK - 1) // BLOCK * BLOCK
        index = torch.arange(states.shape[1])
        caption = self.transformer.cap_embedder(states)
        caption = torch.where((index < count[:, None])[..., None], caption, self.transformer.cap_pad_token)
        zero = torch.zeros_like(index)
        rotation = self._rotation([(index + 1)[None], zero[None], zero[None]], states.shape[0])
        return caption, rotation, index < end[:, None], end

    def _picture(
        self, tokens: torch.Tensor, down: int, across: int, position: torch.Tensor
    ) -> tuple[torch.Tensor, Rotation]:
        """The tokens padded to whole blocks, and their rotation; ``position`` is that of a picture, shape (R,)."""
        count, rows = down * across, tokens.shape[0]
        index = torch.arange((count + BLOCK - 1) // BLOCK * BLOCK)
        is_own = index < count
        place = torch.where(is_own, index, count)
        padding = self.transformer.x_pad_token[None].expand(rows, 1, -1)
        tokens = torch.cat([tokens, padding], dim=1).index_select(1, place)
        of_frame = torch.where(is_own, position[:, None], 0)
        of_row = torch.where(is_own, place // across, 0)
        of_column = torch.where(is_own, place - of_row * across, 0)
        return tokens, self._rotation([of_frame, of_row[None], of_column[None]], rows)

    def _rotation(self, positions: list[torch.Tensor], rows: int) -> Rotation:
        """Of tokens at these positions on each axis, shape (R or 1, tokens)."""
        found = []
        for name in ("cos", "sin"):
            axes = [getattr(self, f"{name}_{axis}")[one] for axis, one in enumerate(positions)]
            found.append(torch.cat([one.expand(rows, -1, -1) for one in axes], dim=-1))
        return found[0], found[1]


class _Processor:
    """Attention of a block, with positions in real numbers."""

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        freqs_cis: Rotation | None = None,
    ) -> torch.Tensor:
        query, key, value = (
            project(hidden_states).unflatten(-1, (attn.heads, -1)) for project in (attn.to_q, attn.to_k, attn.to_v)
        )
        if attn.norm_q is not None:
            query, key = attn.norm_q(query), attn.norm_k(key)
        assert freqs_cis is not None
        found: torch.Tensor = attn.to_out[0](
            attend(rotated(query, freqs_cis), rotated(key, freqs_cis), value, attention_mask)
        )
        return found


class PenultimateStates(TextEncoders):
    """The states of a language model before its last layer, and the mask."""

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Shape (R, L) and (R, L) to (R, L, D) and (R, L)."""
        [encoder] = (getattr(self, name) for name in self.names)
        causal = causal_mask(ids)
        attention = {"full_attention": causal, "sliding_attention": causal}  # no context reaches beyond the window
        found = encoder(ids, attention_mask=attention, use_cache=False, output_hidden_states=True)
        return found.hidden_states[-2], mask.to(torch.float32)


def plan(folder: PipelineFolder, size: Size) -> ExportPlan:
    """What is exported of the pipeline.

    Raises:
        ExportError: If a component is not covered, or ``size`` is none that the model takes.
    """
    config, vae = folder.config("transformer", KIND), vae_config(folder)
    config.require("all_patch_size", f"to hold {PATCH}", lambda value: PATCH in value)
    config.require("all_f_patch_size", "to hold 1", lambda value: 1 in value)
    lengths = config.require("axes_lens", f"three, the first at least {LENGTH + 2}", lambda one: one[0] > LENGTH + 1)
    tokenizer = load_tokenizer(folder, "tokenizer")
    prefix, suffix = chat_template(folder, "tokenizer", tokenizer)
    encoder = read_encoder(
        folder, 1, QWEN, LENGTH, tokenizer=tokenizer, mask="attention_mask", prefix=prefix, suffix=suffix
    )
    window = encoder.config.get("sliding_window")
    encoder.config.require("sliding_window", f"at least {LENGTH}", lambda _: window is None or window >= LENGTH)
    width = encoder.config.number("hidden_size")
    config.require("cap_feat_dim", f"{width}, the text encoder's hidden_size", lambda value: value == width)
    channels, cell = config.number("in_channels"), pixels_per_latent(vae)
    vae.require("latent_channels", f"{channels}, the transformer's", lambda value: value == channels)
    sized = Config(config.name, {**config, "sample_size": SAMPLE_SIZE})
    shape = (channels, *own_size(sized, size, PATCH, cell=cell))
    text, most = (LENGTH, width), min(lengths[1:])
    denoiser = ExportPart(
        DENOISER,
        {"transformer": (KIND,)},
        ZImageModule,
        [*sample_inputs(channels, PATCH, max_size=most), Input(TEXT, text), Input(MASK, (LENGTH,), high=1)],
        [PREDICTION],
        trial_sizes(shape, PATCH),
        "transformer.",
    )
    return ExportPlan(
        shape,
        PipelineInfo(
            folder.class_name,
            (encoder.prompt,),
            pixels_per_latent=cell,
            size_multiple=cell * PATCH,
            max_size=most * PATCH * cell,
        ),
        [text_part([encoder], PenultimateStates, [TEXT, MASK]), denoiser, *vae_parts(vae, shape)],
        {TEXT: CondInput("float32", text, null=0.0), MASK: CondInput("float32", (LENGTH,), null=1.0)},
        {"steps": 50, "guidance_scale": 6.0, "spacing": "trailing"},  # diffusers' 5.0 is added to the conditional
        {encoder.prompt.tokenizer: encoder.tokenizer},
        DATA_RANGE,
    )
