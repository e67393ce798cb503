"""ControlNets (Zhang et al., 2023) as part of the denoiser's graph: their residuals are added to the UNet's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from stepfuse.bundle.cond_input import CondInput
from stepfuse.bundle.pipeline_info import (
    CONTROL_FIRST,
    CONTROL_LAST,
    CONTROL_NUMBERS,
    CONTROL_SCALE,
    control_input,
    require_control_name,
)
from stepfuse.errors import ExportError
from stepfuse.export.onnx.inputs import Input
from stepfuse.export.pipelines.pipeline_folder import Config, PipelineFolder
from stepfuse.extras import pip_install

try:
    import torch
except ImportError as error:
    raise ImportError(f"exporting needs torch ({error}): {pip_install('export')}") from error

KIND = "ControlNetModel"
_OWN = "controlnet"  # the component of a pipeline that was saved with one

#: Entries that a ControlNet must have as its UNet has them, for its residuals to fit.
_SHARED = ("block_out_channels", "layers_per_block", "cross_attention_dim", "addition_embed_type")
_SHARED_XL = ("addition_time_embed_dim", "projection_class_embeddings_input_dim")


class ControlNets(torch.nn.Module):
    """The sum of the residuals of several ControlNets, each at its own scale and timesteps.

    Args:
        nets: diffusers' ``ControlNetModel`` by component.
    """

    def __init__(self, nets: Mapping[str, torch.nn.Module]) -> None:
        super().__init__()
        self.pictures = [control_input(name) for name in nets]
        self.nets = torch.nn.ModuleList(nets.values())

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        text: torch.Tensor,
        given: Mapping[str, torch.Tensor],
        shared: Mapping[str, Any],
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Residuals of the UNet's levels, and of its middle.

        Args:
            sample: Shape (R, C, h, w).
            timestep: Shape (R,).
            text: Shape (R, L, D).
            given: The graph's inputs by name: pictures (R, 3, H, W), and ``CONTROL_NUMBERS``, (R, nets).
            shared: Further arguments, which the UNet takes too.
        """
        scales = acting_scales(timestep, given)
        down: list[torch.Tensor] = []
        middle: Any = 0
        for number, (net, name) in enumerate(zip(self.nets, self.pictures, strict=True)):
            scale = scales[:, number, None, None, None]
            own, bottom = net(
                sample, timestep, text, given[name], conditioning_scale=scale, return_dict=False, **shared
            )
            down = [one + other for one, other in zip(down, own, strict=True)] if down else list(own)
            middle = middle + bottom if number else bottom
        return down, middle


def acting_scales(timestep: torch.Tensor, given: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Scales of ControlNets, (R, nets), 0 where one does not act.

    Args:
        timestep: Shape (R,).
        given: ``CONTROL_NUMBERS`` by name, (R, nets) each.
    """
    t, scale = timestep[:, None], given[CONTROL_SCALE]
    acts = (t <= given[CONTROL_FIRST]) & (t >= given[CONTROL_LAST])
    return scale * acts.to(scale.dtype)


def number_input(name: str, count: int) -> Input:
    """The graph's input for one of ``CONTROL_NUMBERS`` of so many ControlNets, with examples at which they act."""
    low, high = _ACTING.get(name, (0, None))
    return Input(name, (count,), low=low, high=high)


#: Bounds of timesteps between which a ControlNet acts.
_ACTING: Mapping[str, tuple[float, float]] = {CONTROL_FIRST: (500, 1000), CONTROL_LAST: (0, 500)}


def add_controls(folder: PipelineFolder, given: Mapping[str, Path], kind: str) -> list[str]:
    """Makes ControlNets of other folders components of a pipeline.

    Args:
        folder: The pipeline; one that was saved with a ControlNet has it as ``controlnet``.
        given: Their folders by name.
        kind: Their class.

    Returns:
        The names of all, the pipeline's own first.

    Raises:
        ExportError: If a folder is no ControlNet's, a name is taken, or the pipeline has several of its own.
        ValueError: If a name is not one.
    """
    names = [_OWN] if folder.has(_OWN) else []
    if names and (folder.index[_OWN][1] != kind or (folder.path / f"{_OWN}_1").exists()):
        raise ExportError(
            f"{folder.path}: a pipeline must have one ControlNet of its own, got several: save it without them, and"
            " give each as controlnets={name: folder}, --controlnet NAME=FOLDER"
        )
    for name, path in given.items():
        require_control_name(name)
        folder.add(name, path, kind)
    return [*names, *given]


def controlnet_configs(folder: PipelineFolder, names: Sequence[str], unet: Config, cell: int) -> dict[str, Config]:
    """Configurations of ControlNets.

    Args:
        folder: The pipeline.
        names: Their components.
        unet: The UNet's configuration.
        cell: Pixels a side of one cell of a sample, which a ControlNet makes of its picture.

    Raises:
        ExportError: If one is missing, not covered, or made for another UNet.
    """
    found = {}
    for name in names:
        config = folder.config(name, KIND)
        config.require_none("class_embed_type", "num_class_embeds", "encoder_hid_dim")
        config.require("conditioning_channels", "3", lambda value: value == 3)
        config.require(
            "global_pool_conditions", "False: it needs guess mode, which is not done", lambda value: not value
        )
        channels = unet["out_channels"]
        config.require("in_channels", f"{channels}, a latent's", partial(_is, channels))
        config.require(
            "conditioning_embedding_out_channels",
            f"{cell.bit_length()} numbers, for pictures {cell} times as large as latents",
            partial(_has_length, cell.bit_length()),
        )
        for key in (*_SHARED, *(_SHARED_XL if unet["addition_embed_type"] == "text_time" else ())):
            config.require(key, f"{_plain(unet[key])!r}, as its UNet has it", partial(_is, unet[key]))
        found[name] = config
    return found


def control_cond(names: Sequence[str], shape: Sequence[int], cell: int) -> dict[str, CondInput]:
    """The denoiser's conditioning inputs for ControlNets; a scale of 0, the null value, is none."""
    if not names:
        return {}
    picture = CondInput("float32", (3, shape[1] * cell, shape[2] * cell), null=0.0, free="size")
    number = CondInput("float32", (len(names),), null=0.0)
    return {**{control_input(name): picture for name in names}, **dict.fromkeys(CONTROL_NUMBERS, number)}


def _is(wanted: Any, value: Any) -> bool:
    return bool(_plain(value) == _plain(wanted))


def _has_length(wanted: int, value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == wanted


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else value
