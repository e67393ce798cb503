"""Names of a network's modules in LoRA files.

Training scripts name a module as diffusers does, or as the first Stable Diffusion code did, with dots or underscores
between the parts. A table of all these names of a network's modules is exact, while replacing a name's underscores by
dots is ambiguous.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

DENOISER_PART = "denoiser"
TEXT_PARTS = ("text_encoder", "text_encoder_2", "text_encoder_3")

#: Prefixes of modules' names, and the part of the pipeline that each stands for.
_PREFIXES = {
    "lora_unet_": DENOISER_PART,
    "lora_transformer_": DENOISER_PART,
    "unet.": DENOISER_PART,
    "transformer.": DENOISER_PART,
    "diffusion_model.": DENOISER_PART,
    "base_model.model.": DENOISER_PART,
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "lora_te3_": "text_encoder_3",
    **{f"{part}.": part for part in TEXT_PARTS},
}

_ATTENTION_PROCESSOR = re.compile(r"(?:\.processor)?\.to_(q|k|v|out)_lora$")
_TEXT_PROJECTIONS = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "out": "out_proj"}

_TOP = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_BLOCK = re.compile(r"(down_blocks|up_blocks)\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")
_MIDDLE = re.compile(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)")


def split_name(name: str) -> tuple[str, str]:
    """The part of a pipeline and the module's name as ``flat`` has it, from a LoRA's name of a module."""
    part = DENOISER_PART
    for prefix, owner in _PREFIXES.items():
        if name.startswith(prefix):
            part, name = owner, name.removeprefix(prefix)
            break
    if match := _ATTENTION_PROCESSOR.search(f".{name}"):
        projection = match[1]
        if part == DENOISER_PART:
            projection = "to_out.0" if projection == "out" else f"to_{projection}"
        else:
            projection = _TEXT_PROJECTIONS[projection]
        name = f".{name}"[: match.start()].removeprefix(".") + f".{projection}"
    return part, flat(name.replace(".processor.", "."))


def flat(module: str) -> str:
    """A module's name with underscores alone, which dotted and underscored names share."""
    return module.replace(".", "_")


def names_of_denoiser(modules: Iterable[str]) -> dict[str, str]:
    """The module of a denoiser by each of its names, flat."""
    known = list(modules)
    found = {flat(old): module for module in known if (old := _original_name(module, known))}
    return found | {flat(module): module for module in known}


def names_of_text_encoder(modules: Iterable[str]) -> dict[str, str]:
    """The same for a text encoder, whose names begin with ``text_model.`` or, in later transformers, do not."""
    known = list(modules)
    found = {flat(f"text_model.{module}"): module for module in known}
    found |= {flat(module.removeprefix("text_model.")): module for module in known}
    return found | {flat(module): module for module in known}


def _original_name(module: str, modules: list[str]) -> str | None:
    """A UNet's module as the first Stable Diffusion code numbered it; None if that has no such module."""
    if module in _TOP:
        return _TOP[module]
    if match := _MIDDLE.fullmatch(module):
        kind, index, rest = match[1], int(match[2]), match[3]
        if kind == "attentions":
            return f"middle_block.1.{rest}"
        return f"middle_block.{2 * index}.{_RESNET.get(rest, rest)}"
    if not (match := _BLOCK.fullmatch(module)):
        return None
    side, block, kind, index, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
    layers = _layers(side, modules)
    if side == "down_blocks":
        if kind == "downsamplers":
            return f"input_blocks.{(block + 1) * (layers + 1)}.0.op"
        at = f"input_blocks.{1 + block * (layers + 1) + index}"
    else:
        if kind == "upsamplers":
            attended = any(one.startswith(f"up_blocks.{block}.attentions.") for one in modules)
            return f"output_blocks.{(block + 1) * layers - 1}.{2 if attended else 1}.{rest}"
        at = f"output_blocks.{block * layers + index}"
    return f"{at}.0.{_RESNET.get(rest, rest)}" if kind == "resnets" else f"{at}.1.{rest}"


def _layers(side: str, modules: list[str]) -> int:
    """Residual layers of a block of this side."""
    found = {match[1] for one in modules if (match := re.match(rf"{side}\.0\.resnets\.(\d+)\.", one))}
    return len(found)
