"""Names of a network's modules in LoRA files.

Training scripts name a module as diffusers does, or as the first Stable Diffusion code did, with dots or underscores
between the parts. A table of all these names of a network's modules is exact, while replacing a name's underscores by
dots is ambiguous.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

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
_QKV = "attn.to_q", "attn.to_k", "attn.to_v"
_ADDED_QKV = "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"
#: A Flux transformer's blocks: what its first code calls them, and modules in them; behind those what XLabs' processors
#: call theirs.
_FLUX_BLOCKS: Mapping[str, tuple[str, Mapping[str, tuple[str, ...]]]] = {
    "transformer_blocks": (
        "double_blocks",
        {
            "norm1.linear": ("img_mod.lin",),
            "norm1_context.linear": ("txt_mod.lin",),
            "attn.to_out.0": ("img_attn.proj", "proj_lora1"),
            "attn.to_add_out": ("txt_attn.proj", "proj_lora2"),
            "ff.net.0.proj": ("img_mlp.0",),
            "ff.net.2": ("img_mlp.2",),
            "ff_context.net.0.proj": ("txt_mlp.0",),
            "ff_context.net.2": ("txt_mlp.2",),
        },
    ),
    "single_transformer_blocks": (
        "single_blocks",
        {"norm.linear": ("modulation.lin",), "proj_out": ("linear2", "proj_lora")},
    ),
}
#: Modules of these that are several in diffusers, the rows of one after those of the other.
_FLUX_FUSED: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "transformer_blocks": dict.fromkeys(("img_attn.qkv", "qkv_lora1"), _QKV)
    | dict.fromkeys(("txt_attn.qkv", "qkv_lora2"), _ADDED_QKV),
    "single_transformer_blocks": {"linear1": (*_QKV, "proj_mlp"), "qkv_lora": _QKV},
}
_FLUX_BLOCK = re.compile(r"(transformer_blocks|single_transformer_blocks)\.(\d+)\.(.+)")
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
    is_flux = _is_flux(known)
    found: dict[str, str] = {}
    for module in known:
        earlier = _flux_names(module) if is_flux else [_original_name(module, known)]
        found |= {flat(name): module for name in earlier if name}
    return found | {flat(module): module for module in known}


def fused_modules(modules: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The modules of a denoiser that are one in its first code, in the order of its rows, by that one's name, flat."""
    known = set(modules)
    blocks = {(match[1], match[2]) for one in known if (match := _FLUX_BLOCK.fullmatch(one))} if _is_flux(known) else ()
    found = {}
    for kind, index in blocks:
        for name, parts in _FLUX_FUSED[kind].items():
            fused = tuple(f"{kind}.{index}.{part}" for part in parts)
            if known.issuperset(fused):
                found[flat(f"{_FLUX_BLOCKS[kind][0]}.{index}.{name}")] = fused
    return found


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


def _flux_names(module: str) -> list[str]:
    """A module of a Flux transformer as its first code and XLabs name it; none if they have none by itself."""
    if (match := _FLUX_BLOCK.fullmatch(module)) is None:
        return []
    blocks, names = _FLUX_BLOCKS[match[1]]
    return [f"{blocks}.{match[2]}.{name}" for name in names.get(match[3], ())]


def _is_flux(modules: Iterable[str]) -> bool:
    return any(module.startswith("single_transformer_blocks.") for module in modules)
