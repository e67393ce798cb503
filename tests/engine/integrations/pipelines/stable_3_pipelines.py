"""Stable Diffusion 3."""

from functools import cache

import tiny_pipelines
import torch
from shown import IMAGES, MASKS, PROMPTS, SIZE, Shown, filled

_SIZED = {**PROMPTS, "height": SIZE, "width": SIZE, "output_type": "np", "max_sequence_length": 12}
_FROM_IMAGE = {"image": IMAGES, "strength": 0.7}


@cache
def _stable_3():
    return tiny_pipelines.tiny_pipeline("StableDiffusion3Pipeline").components


@cache
def _without_image_encoder():
    parts = _stable_3()
    return {name: parts[name] for name in parts if name not in ("image_encoder", "feature_extractor")}


@cache
def _perturbed():
    return {**_without_image_encoder(), "pag_applied_layers": "blocks.0"}


@cache
def _controlled():
    from diffusers import SD3ControlNetModel

    torch.manual_seed(0)
    controlnet = SD3ControlNetModel.from_transformer(
        _stable_3()["transformer"], num_layers=1, num_extra_conditioning_channels=0
    )
    return {**_without_image_encoder(), "controlnet": filled(controlnet)}


CASES = (
    Shown("StableDiffusion3Pipeline", _stable_3, _SIZED, way="loop"),
    Shown("StableDiffusion3Img2ImgPipeline", _stable_3, {**_SIZED, **_FROM_IMAGE}, way="loop"),
    Shown(
        "StableDiffusion3Pipeline",
        _stable_3,
        {**_SIZED, "skip_guidance_layers": [0]},
        label="StableDiffusion3Pipeline with skip_guidance_layers",
    ),
    Shown("StableDiffusion3InpaintPipeline", _stable_3, {**_SIZED, **_FROM_IMAGE, "mask_image": MASKS}),
    Shown("StableDiffusion3ControlNetPipeline", _controlled, {**_SIZED, "control_image": IMAGES}),
    Shown("StableDiffusion3PAGPipeline", _perturbed, {**_SIZED, "pag_scale": 2.0}),
)
