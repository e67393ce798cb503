"""diffusers pipelines of a few thousand random weights, saved as folders. Vocabularies are their own: no hub is asked.

``save_tiny("StableDiffusionPipeline", folder)`` writes one; ``NAMES`` lists them, and ``CONDITIONED`` those that take
more than a prompt. torch, diffusers and transformers are imported where they are used.
"""

import json
import math
import tempfile
import warnings
from pathlib import Path

NAMES = (
    "DDPMPipeline",
    "DDIMPipeline",
    "DiTPipeline",
    "StableDiffusionPipeline",
    "StableDiffusionPipeline-v",
    "StableDiffusionXLPipeline",
    "StableDiffusion3Pipeline",
    "StableDiffusion3Pipeline-3.5",
    "FluxPipeline",
    "FluxPipeline-schnell",
    "LatentConsistencyModelPipeline",
    "StableDiffusionXLPipeline-lcm",
)
CONDITIONED = (
    "StableDiffusionInpaintPipeline",
    "StableDiffusionXLInpaintPipeline",
    "StableDiffusionControlNetPipeline",
    "StableDiffusionXLControlNetPipeline",
    "StableDiffusion3ControlNetPipeline",
    "StableDiffusion3ControlNetPipeline-textless",
    "StableDiffusionXLImg2ImgPipeline",
    "FluxFillPipeline",
)
PROMPTS = ["a red cat in the rain", "blue dog"]
LENGTH = 12  # tokens of a prompt
LABELS = {index: f"thing {index}, also {index}" for index in range(1000)}
SIZE = 8  # of latents; pixels are twice as many
OWN_SIZES = dict.fromkeys(  # where no configuration says it
    ("FluxPipeline", "FluxPipeline-schnell", "FluxFillPipeline", "ZImagePipeline", "QwenImagePipeline"), 2 * SIZE
)

STABLE_DIFFUSION = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}


def save_tiny(name: str, folder: Path, scheduler=None, **changes) -> Path:
    """Writes a pipeline, the same weights each time.

    Args:
        name: One of ``NAMES``, or of those of ``tiny_transformers``.
        folder: The folder to make.
        scheduler: A diffusers scheduler instead of the usual one.
        changes: Components instead of the usual ones, by name, such as ``text_encoder_3=None``.

    Returns:
        The folder.
    """
    folder = Path(folder)
    tiny_pipeline(name, scheduler, **changes).save_pretrained(folder, safe_serialization=True)
    if name == "DiTPipeline":  # published ones have labels, which diffusers reads but does not save
        index = folder / "model_index.json"
        labels = {str(number): label for number, label in LABELS.items()}
        index.write_text(json.dumps({**json.loads(index.read_text()), "id2label": labels}, indent=2))
    return folder


def tiny_pipeline(name: str, scheduler=None, **changes):
    """The same as a diffusers pipeline, which need not be saved."""
    import diffusers
    import tiny_transformers
    import torch

    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(), tempfile.TemporaryDirectory() as scratch:
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        makers = {**_PARTS, **tiny_transformers.PARTS}
        parts = {**makers[name](Path(scratch)), **changes}
        if scheduler is not None:
            parts["scheduler"] = scheduler
        pipe = getattr(diffusers, name.partition("-")[0])(**parts)
        for part in pipe.components.values():
            if isinstance(part, torch.nn.Module):
                part.eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def clip_tokenizer(folder: Path, pad_token="<|endoftext|>"):
    """A CLIP tokenizer of single bytes and a few merges."""
    from transformers import CLIPTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    letters = list(_byte_letters().values())
    merges = ["c a", "ca t</w>", "d o", "do g</w>", "r e", "re d</w>", "t h", "th e</w>", "i n</w>"]
    words = [*letters, *(f"{one}</w>" for one in letters), *(merge.replace(" ", "") for merge in merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys(words))}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": LENGTH, "pad_token": pad_token}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return CLIPTokenizer.from_pretrained(folder)


def t5_tokenizer():
    """A T5 tokenizer of letters and a few words."""
    import transformers

    words = ["▁", "▁the", "▁red", "▁cat", "▁in", "ain", *map(chr, range(33, 127))]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    vocabulary += [(word, -math.log(len(words)) - 1 / len(word)) for word in words]
    if transformers.__version__.startswith("4."):  # its T5 takes no vocabulary, but a whole tokenizer
        given = {"tokenizer_object": _unigram(vocabulary)}
    else:
        given = {"vocab": vocabulary}
    return transformers.T5TokenizerFast(**given, extra_ids=0, model_max_length=512)


def _unigram(vocabulary):
    """What transformers 5 makes of a T5 vocabulary."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    whole = Tokenizer(models.Unigram(vocabulary, unk_id=2))
    words = pre_tokenizers.Metaspace(prepend_scheme="always")
    whole.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), words])
    whole.decoder = decoders.Metaspace(prepend_scheme="always")
    end = {"single": "$A </s>", "pair": "$A </s> $B </s>", "special_tokens": [("</s>", 1)]}
    whole.post_processor = processors.TemplateProcessing(**end)
    return whole


def clip(tokenizer, width, *, projected=False, layers=2, activation="quick_gelu"):
    """A CLIP text encoder."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        projection_dim=width,
        hidden_act=activation,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = CLIPTextModelWithProjection if projected else CLIPTextModel
    return _widen(model(config))


def t5(tokenizer):
    """A T5 text encoder of width 48."""
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=48,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )
    return T5EncoderModel(config)


def vae(channels=4, scaling_factor=0.18215, **config):
    """A VAE of two levels: twice as many pixels as latents."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=2 * SIZE,
        scaling_factor=scaling_factor,
        **config,
    )


def unet(width, **config):
    """A conditional UNet of two levels."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        **{
            "sample_size": SIZE,
            "block_out_channels": (8, 16),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "layers_per_block": 1,
            "cross_attention_dim": width,
            "attention_head_dim": 2,
            "norm_num_groups": 4,
            **config,
        }
    )


def controlnet(width, seed=0, **config):
    """A ControlNet for ``unet(width)`` and ``vae()``; residuals are zero in a new one, and random in this one."""
    import torch
    from diffusers import ControlNetModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = ControlNetModel(
            **{
                "block_out_channels": (8, 16),
                "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
                "layers_per_block": 1,
                "cross_attention_dim": width,
                "attention_head_dim": 2,
                "norm_num_groups": 4,
                "conditioning_embedding_out_channels": (4, 8),
                **config,
            }
        )
        with torch.no_grad():
            for parameter in made.parameters():
                if not parameter.any():
                    parameter.normal_(std=0.3)
    return made.eval()


def xl_controlnet(**config):
    """The same for the tiny Stable Diffusion XL."""
    return controlnet(16 + 24, **_XL, **config)


_XL = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 24 + 6 * 4,
    "transformer_layers_per_block": (1, 2),
    "use_linear_projection": True,
}


def _pixels(scheduler):
    def parts(scratch):
        from diffusers import UNet2DModel

        network = UNet2DModel(
            sample_size=16,
            block_out_channels=(8, 16),
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            attention_head_dim=4,
            norm_num_groups=4,
        )
        return {"unet": network, "scheduler": _scheduler(scheduler)}

    return parts


def _dit(scratch):
    from diffusers import DiTTransformer2DModel

    network = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=SIZE,
        patch_size=2,
        num_embeds_ada_norm=1000,
    )
    return {
        "transformer": network,
        "vae": vae(),
        "scheduler": _scheduler("DDIMScheduler", clip_sample=False),
        "id2label": {str(index): label for index, label in LABELS.items()},
    }


def _stable_diffusion(scratch, **scheduler):
    tokenizer = clip_tokenizer(scratch / "tokenizer")
    return {
        "vae": vae(),
        "text_encoder": clip(tokenizer, 16),
        "tokenizer": tokenizer,
        "unet": unet(16),
        "scheduler": _scheduler("DDIMScheduler", **STABLE_DIFFUSION, clip_sample=False, **scheduler),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }


def _stable_diffusion_2(scratch):
    tokenizer = clip_tokenizer(scratch / "tokenizer", pad_token="!")
    return {
        **_stable_diffusion(scratch, set_alpha_to_one=False, prediction_type="v_prediction"),
        "tokenizer": tokenizer,
        "text_encoder": clip(tokenizer, 16, activation="gelu"),
        "unet": unet(16, attention_head_dim=(2, 4), use_linear_projection=True),
    }


def _latent_consistency(scratch):
    parts = _stable_diffusion(scratch)
    return {**parts, "unet": unet(16, time_cond_proj_dim=9), "scheduler": _scheduler("LCMScheduler")}


def _stable_diffusion_xl(scratch, **changes):
    first = clip_tokenizer(scratch / "tokenizer")
    second = clip_tokenizer(scratch / "tokenizer_2", pad_token="!")
    network = unet(16 + 24, **_XL, **changes)
    return {
        "vae": vae(scaling_factor=0.13025),
        "text_encoder": clip(first, 16),
        "text_encoder_2": clip(second, 24, projected=True, activation="gelu"),
        "tokenizer": first,
        "tokenizer_2": second,
        "unet": network,
        "scheduler": _scheduler("EulerDiscreteScheduler", **STABLE_DIFFUSION),
        "add_watermarker": False,
    }


def _latent_consistency_xl(scratch):
    return {**_stable_diffusion_xl(scratch, time_cond_proj_dim=8), "scheduler": _scheduler("LCMScheduler")}


def _conditioned(parts, **changes):
    return lambda scratch: {**parts(scratch), **{name: make() for name, make in changes.items()}}


def _refiner(scratch):
    parts = _stable_diffusion_xl(scratch)
    network = unet(24, **{**_XL, "projection_class_embeddings_input_dim": 24 + 5 * 4})
    return {
        **parts,
        "text_encoder": None,
        "tokenizer": None,
        "unet": network,
        "requires_aesthetics_score": True,
        "force_zeros_for_empty_prompt": False,
    }


def _stable_diffusion_3(scratch, **changes):
    from diffusers import SD3Transformer2DModel

    first = clip_tokenizer(scratch / "tokenizer")
    second = clip_tokenizer(scratch / "tokenizer_2", pad_token="!")
    third = t5_tokenizer()
    network = SD3Transformer2DModel(**{**_SD3, **changes})
    return {
        "transformer": _widen(network),
        "scheduler": _scheduler("FlowMatchEulerDiscreteScheduler", shift=3.0),
        "vae": vae(16, 1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False),
        "text_encoder": clip(first, 16, projected=True),
        "tokenizer": first,
        "text_encoder_2": clip(second, 24, projected=True, activation="gelu"),
        "tokenizer_2": second,
        "text_encoder_3": t5(third),
        "tokenizer_3": third,
    }


_SD3 = {
    "sample_size": SIZE,
    "patch_size": 2,
    "in_channels": 16,
    "num_layers": 2,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "joint_attention_dim": 48,
    "caption_projection_dim": 16,
    "pooled_projection_dim": 16 + 24,
    "out_channels": 16,
    "pos_embed_max_size": 12,
    "qk_norm": "rms_norm",
}


def sd3_controlnet(seed=0, **config):
    """A ControlNet for Stable Diffusion 3's transformer; residuals are zero in a new one, and random in this one."""
    import torch
    from diffusers import SD3ControlNetModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = SD3ControlNetModel(**{**_SD3, **config})
        with torch.no_grad():
            for parameter in made.parameters():
                if not parameter.any():
                    parameter.normal_(std=0.3)
    return made.eval()


def _controlled_3(**config):
    """A transformer of four layers, of which a ControlNet's two feed three: the last takes none."""
    return _conditioned(
        lambda scratch: _stable_diffusion_3(scratch, num_layers=4), controlnet=lambda: sd3_controlnet(**config)
    )


#: A ControlNet as those of SD 3.5 large: without text, with the transformer's positions, and with its pooled text.
TEXTLESS = {
    "joint_attention_dim": None,
    "use_pos_embed": False,
    "force_zeros_for_pooled_projection": False,
    "num_layers": 1,
}


def _stable_diffusion_3_5(scratch):
    """The medium model's transformer, of which some layers have a second attention, with a shift by size."""
    scheduler = _scheduler("FlowMatchEulerDiscreteScheduler", shift=3.0, use_dynamic_shifting=True)
    return {**_stable_diffusion_3(scratch, dual_attention_layers=(0,)), "scheduler": scheduler}


def flux_transformer(**config):
    """Flux's transformer, of one layer of each kind, with positions in two axes of 4 and 8 numbers."""
    from diffusers import FluxTransformer2DModel

    usual = {"in_channels": 64, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16}
    usual |= {"num_attention_heads": 2, "joint_attention_dim": 48, "pooled_projection_dim": 16}
    return _widen(FluxTransformer2DModel(**{**usual, "axes_dims_rope": (4, 4, 8), **config}))


def _flux(guidance_embeds, transformer=None, **scheduler):
    def parts(scratch):
        first, second = clip_tokenizer(scratch / "tokenizer"), t5_tokenizer()
        return {
            "transformer": flux_transformer(guidance_embeds=guidance_embeds, **(transformer or {})),
            "scheduler": _scheduler("FlowMatchEulerDiscreteScheduler", **scheduler),
            "vae": vae(16, 0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False),
            "text_encoder": clip(first, 16),
            "tokenizer": first,
            "text_encoder_2": t5(second),
            "tokenizer_2": second,
        }

    return parts


def _scheduler(name, **config):
    import diffusers

    return getattr(diffusers, name)(**config)


def _widen(module):
    """Scales weights up: initial ones are so small that conditioning would hardly change a prediction."""
    import torch

    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)
    return module


def _byte_letters():
    """The letter that byte-level BPE writes for each byte: itself where it prints, else one beyond Latin-1."""
    prints = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in prints]
    return {byte: chr(byte) for byte in prints} | {byte: chr(256 + index) for index, byte in enumerate(others)}


_PARTS = {
    "DDPMPipeline": _pixels("DDPMScheduler"),
    "DDIMPipeline": _pixels("DDIMScheduler"),
    "DiTPipeline": _dit,
    "StableDiffusionPipeline": _stable_diffusion,
    "StableDiffusionPipeline-v": _stable_diffusion_2,
    "StableDiffusionXLPipeline": _stable_diffusion_xl,
    "StableDiffusion3Pipeline": _stable_diffusion_3,
    "StableDiffusion3Pipeline-3.5": _stable_diffusion_3_5,
    "FluxPipeline": _flux(True, shift=3.0, use_dynamic_shifting=True),
    "FluxPipeline-schnell": _flux(False),
    "FluxFillPipeline": _flux(
        True, {"in_channels": 4 * (16 + 16 + 4), "out_channels": 64}, shift=3.0, use_dynamic_shifting=True
    ),
    "LatentConsistencyModelPipeline": _latent_consistency,
    "StableDiffusionXLPipeline-lcm": _latent_consistency_xl,
    "StableDiffusionInpaintPipeline": _conditioned(_stable_diffusion, unet=lambda: unet(16, in_channels=9)),
    "StableDiffusionXLInpaintPipeline": _conditioned(
        _stable_diffusion_xl, unet=lambda: unet(16 + 24, in_channels=9, **_XL)
    ),
    "StableDiffusionControlNetPipeline": _conditioned(_stable_diffusion, controlnet=lambda: controlnet(16)),
    "StableDiffusionXLControlNetPipeline": _conditioned(_stable_diffusion_xl, controlnet=xl_controlnet),
    "StableDiffusionXLImg2ImgPipeline": _refiner,
    "StableDiffusion3ControlNetPipeline": _controlled_3(),
    "StableDiffusion3ControlNetPipeline-textless": _controlled_3(**TEXTLESS),
}
