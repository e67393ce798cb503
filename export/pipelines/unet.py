"""The conditional UNet of Stable Diffusion 1.x, 2.x and XL: its configuration, checked, and its graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stepfuse.bundle.cond_input import CondInput
from stepfuse.bundle.model_info import GUIDANCE_INPUT
from stepfuse.bundle.pipeline_info import CONTROL_NUMBERS, control_input
from stepfuse.export.onnx.inputs import Input
from stepfuse.export.pipelines.conditioned_unet import ConditionedUNet
from stepfuse.export.pipelines.controlnet import ControlNets, number_input
from stepfuse.export.pipelines.export_plan import DENOISER, PREDICTION, ExportPart, sample_inputs
from stepfuse.export.pipelines.pipeline_folder import Config, PipelineFolder
from stepfuse.extras import pip_install

try:
    import torch
except ImportError as error:
    raise ImportError(f"exporting needs torch ({error}): {pip_install('export')}") from error

KIND = "UNet2DConditionModel"
TEXT, POOLED, SIZE, MASKED = "encoder_hidden_states", "text_embeds", "time_ids", "masked_image"
_TOKENS = "tokens"
_UP_BLOCKS = ("CrossAttnUpBlock2D", "UpBlock2D")  # those that upsample to a size


class UNetModule(ConditionedUNet):
    """diffusers' ``UNet2DConditionModel``, with the ControlNets whose residuals it adds.

    Args:
        unet: The network.
        names: The graph's inputs, in their order.
        controls: ControlNets by name.
    """

    def __init__(self, unet: Any, names: Sequence[str], controls: Mapping[str, torch.nn.Module]) -> None:
        super().__init__(unet)
        self.names = tuple(names)
        self.controls = ControlNets(controls) if controls else None
        # Upsampling to the size of the skip connection, and not to twice a size, is diffusers' way for sizes that the
        # levels do not divide, and gives the same for all others. A graph has one way: no size divides by 2^30.
        unet.num_upsamplers = 30
        for block in unet.up_blocks:
            for upsampler in block.upsamplers or ():
                upsampler.interpolate = False  # it would compare ratios of sizes, which no capture follows
                upsampler.register_forward_pre_hook(_interpolate)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """The inputs in the order of ``names``, a sample (R, C, h, w) first, to a prediction of its shape."""
        given = dict(zip(self.names, inputs, strict=True))
        sample, timestep, text = inputs[:3]
        added = {name: given[name] for name in (POOLED, SIZE) if name in given}
        shared: dict[str, Any] = {"added_cond_kwargs": added} if added else {}
        down = middle = None
        if self.controls is not None:
            down, middle = self.controls(sample, timestep, text, given, shared)
        if MASKED in given:
            sample = torch.cat([sample, given[MASKED]], dim=1)
        found = self.unet(
            sample,
            timestep,
            text,
            timestep_cond=self.timestep_cond(given.get(GUIDANCE_INPUT)),
            down_block_additional_residuals=down,
            mid_block_additional_residual=middle,
            return_dict=False,
            **shared,
        )
        return found[0]


def _interpolate(upsampler: torch.nn.Module, inputs: tuple[torch.Tensor, Any]) -> tuple[torch.Tensor, Any]:
    """Interpolates the states that an ``Upsample2D`` is given to the size that it is given."""
    states, size = inputs
    return torch.nn.functional.interpolate(states, size=size, mode="nearest"), size


def unet_config(folder: PipelineFolder, vae: Config, addition: str | None) -> Config:
    """The UNet's configuration.

    Args:
        folder: The pipeline.
        vae: The VAE's configuration.
        addition: The ``addition_embed_type`` that it must have.

    Raises:
        ExportError: If it is missing or not covered.
    """
    config = folder.config("unet", KIND)
    config.require_none("class_embed_type", "num_class_embeds", "encoder_hid_dim")
    config.require("time_cond_proj_dim", "None, or at least 4", lambda width: width is None or width >= 4)
    config.require("up_block_types", f"of {' and '.join(_UP_BLOCKS)}", lambda value: set(value) <= set(_UP_BLOCKS))
    config.require("addition_embed_type", repr(addition), lambda value: value == addition)
    channels = vae.number("latent_channels")
    masked = 2 * channels + 1
    rule = f"{channels}, the VAE's latent_channels, or {masked} for inpainting"
    config.require("in_channels", rule, lambda value: value in (channels, masked))
    config.require("out_channels", f"{channels}, the VAE's latent_channels", lambda value: value == channels)
    return config


def masked_cond(config: Config, shape: Sequence[int]) -> dict[str, CondInput]:
    """The conditioning input of an inpainting model: the mask and the masked picture's latents; of others nothing."""
    if config["in_channels"] == shape[0]:
        return {}
    return {MASKED: CondInput("float32", (1 + shape[0], *shape[1:]), null=0.0, free="size")}


def text_cond(length: int, width: int) -> CondInput:
    """Embeddings of a prompt: of one context, or of as many tokens as a request gives."""
    return CondInput("float32", (length, width), null=0.0, free="length")


def denoiser_part(
    config: Config, shape: Sequence[int], cond: Mapping[str, CondInput], cell: int, controls: Mapping[str, Config]
) -> ExportPart:
    """The graph of the UNet and its ControlNets.

    Args:
        config: The UNet's.
        shape: Of a sample at the model's own size.
        cond: All conditioning inputs, the prompt's first.
        cell: Pixels a side of one cell of a sample.
        controls: ControlNets by the name of their component.
    """
    halvings = 2 ** (len(config["block_out_channels"]) - 1)
    first = sample_inputs(shape[0], 1, min_size=halvings + 1)  # of which the last level has two
    inputs = [*first, *(_graph_input(name, spec, cell) for name, spec in cond.items())]
    names = [one.name for one in inputs]

    def build(unet: Any, *nets: torch.nn.Module) -> torch.nn.Module:
        return UNetModule(unet, names, dict(zip(controls, nets, strict=True)))

    return ExportPart(
        DENOISER,
        {"unet": (KIND,), **{name: (one.kind,) for name, one in controls.items()}},
        build,
        inputs,
        [PREDICTION],
        _trial_sizes(halvings, shape, cond[TEXT].shape[0]),
        "unet.",
    )


def _graph_input(name: str, spec: CondInput, cell: int) -> Input:
    """An input of the graph that takes a conditioning input, with examples such as it is given."""
    if name.startswith(control_input("")):
        return Input(name, (3, f"{cell}*height", f"{cell}*width"), high=1)
    if name in CONTROL_NUMBERS:
        return number_input(name, *spec.shape)
    if name == MASKED:
        return Input(name, (spec.shape[0], "height", "width"))
    if name == TEXT:
        return Input(name, (_TOKENS, *spec.shape[1:]))
    low, high = EXAMPLES.get(name, (0, None))
    return Input(name, spec.shape, low=low, high=high)


#: Bounds of examples where these are not standard normal.
EXAMPLES: Mapping[str, tuple[float, float]] = {
    SIZE: (0, 1024),
    GUIDANCE_INPUT: (0, 10),
}


def _trial_sizes(halvings: int, shape: Sequence[int], length: int) -> dict[str, tuple[int, ...]]:
    """Sizes to compare at: a small one that the UNet's levels do not divide, and the model's own."""
    return {
        "height": (2 * halvings + 1, max(halvings + 1, shape[1])),
        "width": (3 * halvings - 1, max(halvings + 1, shape[2])),
        _TOKENS: (2 * length, length),
    }
