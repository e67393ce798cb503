"""Flux, Flux 2 and Chroma, whose latents are packed tokens."""

from functools import cache

import tiny_pipelines
from shown import IMAGES, MASKS, Shown, network, scheduler, tensor

_TRANSFORMER = {
    "patch_size": 1,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 16,
}
_TEXT = {"prompt_embeds": tensor(2, 6, 16), "pooled_prompt_embeds": tensor(2, 8)}
_NEGATIVE = {
    "negative_prompt_embeds": tensor(2, 6, 16, seed=2),
    "negative_pooled_prompt_embeds": tensor(2, 8, seed=2),
    "true_cfg_scale": 3.0,
}
_SIZE = {"height": 16, "width": 16, "output_type": "latent"}


def _flux(in_channels=4, **parts):
    config = {**_TRANSFORMER, "pooled_projection_dim": 8, "axes_dims_rope": (4, 4, 8), "guidance_embeds": True}
    return {
        "transformer": network("FluxTransformer2DModel", **config, in_channels=in_channels, out_channels=4),
        "vae": _vae(),
        "scheduler": scheduler("FlowMatchEulerDiscreteScheduler", use_dynamic_shifting=True),
        **dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")),
        **parts,
    }


@cache
def _vae():
    return tiny_pipelines.vae(1, shift_factor=0.1).eval()


@cache
def _text():
    return _flux()


@cache
def _controlnet():
    config = {**_TRANSFORMER, "pooled_projection_dim": 8, "axes_dims_rope": (4, 4, 8), "guidance_embeds": True}
    return {**_text(), "controlnet": network("FluxControlNetModel", **config, in_channels=4)}


@cache
def _control():
    return _flux(in_channels=8)


@cache
def _fill():  # latents, the masked image's, and a mask of 2 x 2 pixels for each
    return _flux(in_channels=4 + 4 + 16)


@cache
def _flux_2():
    config = {**_TRANSFORMER, "in_channels": 4, "axes_dims_rope": (4, 4, 4, 4)}
    return {
        "transformer": network("Flux2Transformer2DModel", **config),
        "vae": network(
            "AutoencoderKLFlux2",
            block_out_channels=(8,),
            down_block_types=("DownEncoderBlock2D",),
            up_block_types=("UpDecoderBlock2D",),
            latent_channels=1,
            norm_num_groups=4,
        ),
        "scheduler": scheduler("FlowMatchEulerDiscreteScheduler", use_dynamic_shifting=True),
        "text_encoder": None,
        "tokenizer": None,
    }


@cache
def _chroma():
    config = {**_TRANSFORMER, "in_channels": 4, "axes_dims_rope": (4, 4, 8)}
    approximator = {"approximator_hidden_dim": 16, "approximator_layers": 1, "approximator_num_channels": 16}
    return {
        "transformer": network("ChromaTransformer2DModel", **config, **approximator),
        "vae": _vae(),
        "scheduler": scheduler("FlowMatchEulerDiscreteScheduler"),
        "text_encoder": None,
        "tokenizer": None,
    }


_CHROMA_TEXT = {
    "prompt_embeds": tensor(2, 6, 16),
    "negative_prompt_embeds": tensor(2, 6, 16, seed=2),
    "prompt_attention_mask": tensor(2, 6).abs() > 0.1,
    "negative_prompt_attention_mask": tensor(2, 6, seed=2).abs() > 0.1,
}

CASES = (
    Shown("FluxPipeline", _text, {**_SIZE, **_TEXT, **_NEGATIVE}),
    Shown("FluxImg2ImgPipeline", _text, {**_SIZE, **_TEXT, "image": IMAGES, "strength": 0.5}),
    Shown("FluxInpaintPipeline", _text, {**_SIZE, **_TEXT, "image": IMAGES, "mask_image": MASKS, "strength": 0.8}),
    Shown("FluxFillPipeline", _fill, {**_SIZE, **_TEXT, "image": IMAGES, "mask_image": MASKS}),
    Shown("FluxControlPipeline", _control, {**_SIZE, **_TEXT, "control_image": IMAGES}),
    Shown("FluxControlNetPipeline", _controlnet, {**_SIZE, **_TEXT, "control_image": IMAGES}),
    Shown("FluxKontextPipeline", _text, {**_SIZE, **_TEXT, "image": IMAGES, "max_area": 256, "_auto_resize": False}),
    Shown("Flux2Pipeline", _flux_2, {**_SIZE, "height": 32, "width": 32, "prompt_embeds": tensor(2, 6, 16)}),
    Shown(
        "Flux2KleinPipeline",
        _flux_2,
        {
            **_SIZE,
            "height": 32,
            "width": 32,
            "prompt_embeds": tensor(2, 6, 16),
            "negative_prompt_embeds": tensor(2, 6, 16, seed=2),
        },
    ),
    Shown("ChromaPipeline", _chroma, {**_SIZE, **_CHROMA_TEXT}),
)
