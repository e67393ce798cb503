"""Stable Diffusion 1, 2 and XL and what is made of their networks."""

from functools import cache

import tiny_pipelines
import torch
from shown import IMAGES, MASKS, PROMPTS, SIZE, Shown, filled, network, scheduler, tensor

_SIZED = {**PROMPTS, "height": SIZE, "width": SIZE, "output_type": "np", "guidance_scale": 5.0}
_LATENT = {**_SIZED, "output_type": "latent"}
_FROM_IMAGE = {"image": IMAGES, "strength": 0.7}
_INPAINT = {**_SIZED, **_FROM_IMAGE, "mask_image": MASKS}
_PAG = {"pag_scale": 2.0, "pag_adaptive_scale": 0.1}
_STABLE = {**tiny_pipelines.STABLE_DIFFUSION, "skip_prk_steps": True}


@cache
def _stable():
    parts = tiny_pipelines.tiny_pipeline("StableDiffusionPipeline").components
    return {**parts, "requires_safety_checker": False}


@cache
def _xl():
    return tiny_pipelines.tiny_pipeline("StableDiffusionXLPipeline").components


def _controlled(parts):
    @cache
    def controlled():
        from diffusers import ControlNetModel

        torch.manual_seed(0)
        controlnet = ControlNetModel.from_unet(parts()["unet"], conditioning_embedding_out_channels=(8, 16))
        return {**parts(), "controlnet": filled(controlnet)}

    return controlled


def _with_scheduler(parts, name):
    return lambda: {**parts(), "scheduler": scheduler(name).from_config(_STABLE)}


def _with_unet(width=16, **config):
    @cache
    def parts():
        torch.manual_seed(0)
        return {**_stable(), "unet": tiny_pipelines.unet(width, **config).eval()}

    return parts


@cache
def _kolors():
    torch.manual_seed(0)
    unet = tiny_pipelines.unet(
        16,
        encoder_hid_dim=12,
        encoder_hid_dim_type="text_proj",
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=10 + 6 * 4,
    )
    return {
        "unet": unet.eval(),
        "vae": _xl()["vae"],
        "scheduler": scheduler("EulerDiscreteScheduler", **tiny_pipelines.STABLE_DIFFUSION),
        "text_encoder": None,
        "tokenizer": None,
    }


_KOLORS_TEXT = {
    "prompt_embeds": tensor(2, 5, 12),
    "negative_prompt_embeds": tensor(2, 5, 12, seed=2),
    "pooled_prompt_embeds": tensor(2, 10),
    "negative_pooled_prompt_embeds": tensor(2, 10, seed=2),
    "height": SIZE,
    "width": SIZE,
    "output_type": "np",
}


@cache
def _consistent():
    parts = _with_unet(time_cond_proj_dim=8)()
    return {**parts, "scheduler": scheduler("LCMScheduler").from_config(_STABLE)}


@cache
def _marigold():
    torch.manual_seed(0)
    parts = _stable()
    return {
        **{name: parts[name] for name in ("vae", "scheduler", "text_encoder", "tokenizer")},
        "unet": tiny_pipelines.unet(16, in_channels=8).eval(),
        "prediction_type": "depth",
    }


@cache
def _marigold_normals():
    return {**_marigold(), "prediction_type": "normals"}


@cache
def _animated():
    adapter = network(
        "MotionAdapter",
        block_out_channels=(8, 16),
        motion_layers_per_block=1,
        motion_norm_num_groups=4,
        motion_num_attention_heads=2,
        use_motion_mid_block=False,
    )
    kept = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")
    return {**{name: _stable()[name] for name in kept}, "motion_adapter": adapter}


def image_adapter(unet, width=6, tokens=4):
    """The weights of an IP-Adapter for the features of a picture, of this many numbers."""
    cross = unet.config.cross_attention_dim
    weights = {}
    layers = [name for name in unet.attn_processors if name.endswith("attn2.processor")]
    for number, name in enumerate(layers):
        rows = unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
        weights[f"{2 * number + 1}.to_k_ip.weight"] = tensor(rows, cross, seed=number)
        weights[f"{2 * number + 1}.to_v_ip.weight"] = tensor(rows, cross, seed=number + 50)
    projection = {
        "proj.weight": tensor(tokens * cross, width),
        "proj.bias": tensor(tokens * cross),
        "norm.weight": tensor(cross),
        "norm.bias": tensor(cross),
    }
    return {"image_proj": projection, "ip_adapter": weights}


def adapt(pipe):
    """Loads an IP-Adapter into a copy of the pipeline's UNet."""
    import copy

    pipe.unet = copy.deepcopy(pipe.unet)
    pipe.load_ip_adapter(image_adapter(pipe.unet), subfolder=None, weight_name=None, image_encoder_folder=None)
    pipe.set_ip_adapter_scale(0.7)


_EMBEDDED = {"ip_adapter_image_embeds": [tensor(2, 1, 6)]}  # without and with conditioning

CASES = (
    Shown("StableDiffusionPipeline", _stable, _SIZED, way="loop"),
    Shown("StableDiffusionImg2ImgPipeline", _stable, {**PROMPTS, **_FROM_IMAGE, "output_type": "np"}, way="loop"),
    Shown("StableDiffusionInpaintPipeline", _stable, _INPAINT),
    Shown("StableDiffusionControlNetPipeline", _controlled(_stable), {**_SIZED, "image": IMAGES}),
    Shown(
        "StableDiffusionControlNetImg2ImgPipeline",
        _controlled(_stable),
        {**_SIZED, **_FROM_IMAGE, "control_image": IMAGES},
    ),
    Shown("StableDiffusionControlNetInpaintPipeline", _controlled(_stable), {**_INPAINT, "control_image": IMAGES}),
    Shown("StableDiffusionPAGPipeline", _with_scheduler(_stable, "DPMSolverMultistepScheduler"), {**_SIZED, **_PAG}),
    Shown(
        "StableDiffusionPipeline",
        _stable,
        {**_SIZED, **_EMBEDDED},
        adapt,
        "StableDiffusionPipeline with IP-Adapter",
        way="loop",
    ),
    Shown(
        "StableDiffusionInstructPix2PixPipeline",
        _with_unet(in_channels=8),
        {**PROMPTS, "image": IMAGES, "output_type": "np"},
    ),
    Shown("LatentConsistencyModelPipeline", _consistent, _SIZED),
    Shown("StableDiffusionXLPipeline", _xl, _SIZED, way="loop"),
    Shown("StableDiffusionXLImg2ImgPipeline", _xl, {**PROMPTS, **_FROM_IMAGE, "output_type": "np"}, way="loop"),
    Shown("StableDiffusionXLInpaintPipeline", _xl, _INPAINT),
    Shown("StableDiffusionXLControlNetPipeline", _controlled(_xl), {**_SIZED, "image": IMAGES}),
    Shown("StableDiffusionXLPAGPipeline", _xl, {**_SIZED, **_PAG}),
    Shown(
        "StableDiffusionXLPipeline",
        _xl,
        {**_SIZED, **_EMBEDDED},
        adapt,
        "StableDiffusionXLPipeline with IP-Adapter",
        way="loop",
    ),
    Shown("KolorsPipeline", _kolors, _KOLORS_TEXT, module="diffusers.pipelines.kolors"),
    Shown("MarigoldDepthPipeline", _marigold, {"image": IMAGES[0], "processing_resolution": 0}),
    Shown("MarigoldNormalsPipeline", _marigold_normals, {"image": IMAGES[0], "processing_resolution": 0}),
    Shown("AnimateDiffPipeline", _animated, {**_SIZED, "num_frames": 3}),
)
