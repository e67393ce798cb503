"""ControlNets of Stable Diffusion 3's transformer: they follow latents of pictures, and have a residual a layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from stepfuse.bundle.cond_input import CondInput
from stepfuse.bundle.pipeline_info import CONTROL_NUMBERS, encoded_control_input
from stepfuse.export.onnx.inputs import Input
from stepfuse.export.pipelines.controlnet import acting_scales, number_input
from stepfuse.export.pipelines.pipeline_folder import Config, PipelineFolder
from stepfuse.export.pipelines.positions import crop_positions
from stepfuse.extras import pip_install

try:
    import torch
except ImportError as error:
    raise ImportError(f"exporting needs torch ({error}): {pip_install('export')}") from error

KIND = "SD3ControlNetModel"

#: Entries that a ControlNet must have as its transformer has them.
_SHARED = ("in_channels", "patch_size", "attention_head_dim", "num_attention_heads", "pooled_projection_dim")
#: Entries that diffusers reads of the first of several ControlNets, for all.
_ALIKE = ("num_layers", "force_zeros_for_pooled_projection", "joint_attention_dim")


class TransformerControlNets(torch.nn.Module):
    """The sum of the residuals of several ControlNets, each at its own scale and timesteps.

    Args:
        nets: diffusers' ``SD3ControlNetModel`` by component.
        transformer: The network that they are for.
        shift: What latents of the VAE are shifted by, in the denoiser's units.
    """

    def __init__(self, nets: Mapping[str, torch.nn.Module], transformer: Any, shift: float) -> None:
        super().__init__()
        self.latents = [encoded_control_input(name) for name in nets]
        self.nets = torch.nn.ModuleList(nets.values())
        self.shift = shift
        net: Any
        for net in self.nets:
            if net.pos_embed is None:  # those of SD 3.5 large take the transformer's
                net.pos_embed = transformer.pos_embed
            else:
                crop_positions(net.pos_embed)

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        text: torch.Tensor,
        pooled: torch.Tensor,
        given: Mapping[str, torch.Tensor],
    ) -> list[torch.Tensor]:
        """Residuals, one for each of the ControlNets' layers, (R, tokens, D).

        Args:
            sample: Shape (R, C, h, w).
            timestep: Shape (R,).
            text: Shape (R, L, D).
            pooled: Shape (R, P).
            given: The graph's inputs by name: latents of pictures, (R, C, h, w), and ``CONTROL_NUMBERS``, (R, nets).
        """
        scales = acting_scales(timestep, given)
        found: list[torch.Tensor] = []
        for number, (net, name) in enumerate(zip(self.nets, self.latents, strict=True)):
            config: Any = net.config
            zeros = config.force_zeros_for_pooled_projection  # as its pipeline does, which does not shift latents then
            own = net(
                sample,
                given[name] + self.shift if zeros else given[name],
                scales[:, number, None, None],
                None if config.joint_attention_dim is None else text,
                torch.zeros_like(pooled) if zeros else pooled,
                timestep,
                return_dict=False,
            )[0]
            found = [one + other for one, other in zip(found, own, strict=True)] if found else list(own)
        return found


def transformer_controlnets(folder: PipelineFolder, names: Sequence[str], transformer: Config) -> dict[str, Config]:
    """Configurations of ControlNets.

    Args:
        folder: The pipeline.
        names: Their components.
        transformer: The transformer's configuration.

    Raises:
        ExportError: If one is missing, not covered, made for another transformer, or unlike the first.
    """
    found: dict[str, Config] = {}
    for name in names:
        config = folder.config(name, KIND)
        for key in _SHARED:
            wanted = transformer[key]
            config.require(key, f"{wanted}, as its transformer has it", partial(_is, wanted))
        width = transformer["joint_attention_dim"]
        config.require(
            "joint_attention_dim", f"{width}, as its transformer has it, or None", partial(_is_or_none, width)
        )
        config.require("extra_conditioning_channels", "0: no ControlNet that repaints", lambda value: not value)
        config.require("pos_embed_type", "'sincos'", lambda value: value == "sincos")
        first = next(iter(found.values()), config)
        for key in _ALIKE:
            config.require(key, f"{first[key]}, as the first ControlNet has it", partial(_is, first[key]))
        found[name] = config
    return found


def encoded_control_cond(names: Sequence[str], shape: Sequence[int]) -> dict[str, CondInput]:
    """The denoiser's conditioning inputs for ControlNets; a scale of 0, the null value, is none."""
    if not names:
        return {}
    latents = CondInput("float32", tuple(shape), null=0.0, free="size")
    number = CondInput("float32", (len(names),), null=0.0)
    return {**{encoded_control_input(name): latents for name in names}, **dict.fromkeys(CONTROL_NUMBERS, number)}


def encoded_control_inputs(names: Sequence[str], sample: Input) -> list[Input]:
    """The graph's inputs for them, latents like ``sample`` first."""
    if not names:
        return []
    return [
        *(Input(encoded_control_input(name), sample.shape) for name in names),
        *(number_input(one, len(names)) for one in CONTROL_NUMBERS),
    ]


def _is(wanted: Any, value: Any) -> bool:
    return bool(value == wanted)


def _is_or_none(wanted: Any, value: Any) -> bool:
    return value is None or bool(value == wanted)
