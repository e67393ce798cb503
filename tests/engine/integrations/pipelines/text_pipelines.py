"""Text to image by transformers whose latents are pictures."""

from functools import cache

import torch
from shown import Shown, network, scheduler, tensor

_NO_TEXT = {"text_encoder": None, "tokenizer": None}
_MASKED = {
    "prompt_embeds": tensor(2, 6, 16),
    "negative_prompt": None,
    "negative_prompt_embeds": tensor(2, 6, 16, seed=2),
    "prompt_attention_mask": torch.ones(2, 6, dtype=torch.long),
    "negative_prompt_attention_mask": torch.tensor([[1] * 6, [1] * 3 + [0] * 3]),
}
_UNMASKED = {name: _MASKED[name] for name in ("prompt_embeds", "negative_prompt_embeds")}
_PIXART = {**_MASKED, "height": 64, "width": 64, "output_type": "latent", "use_resolution_binning": False}
_FLOW = "FlowMatchEulerDiscreteScheduler"


@cache
def _pixart():
    transformer = network(
        "PixArtTransformer2DModel",
        sample_size=8,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=16,
        in_channels=4,
        cross_attention_dim=16,
        out_channels=8,
    )
    return {"transformer": transformer, "vae": None, "scheduler": scheduler("DPMSolverMultistepScheduler"), **_NO_TEXT}


@cache
def _sana():
    transformer = network(
        "SanaTransformer2DModel",
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=4,
        num_cross_attention_heads=2,
        cross_attention_head_dim=4,
        cross_attention_dim=8,
        caption_channels=16,
        sample_size=2,
    )
    return {"transformer": transformer, "vae": None, "scheduler": scheduler(_FLOW, shift=3.0), **_NO_TEXT}


@cache
def _sana_sprint():
    transformer = network(
        "SanaTransformer2DModel",
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=4,
        num_cross_attention_heads=2,
        cross_attention_head_dim=4,
        cross_attention_dim=8,
        caption_channels=16,
        sample_size=2,
        qk_norm="rms_norm_across_heads",
        guidance_embeds=True,
    )
    return {"transformer": transformer, "vae": None, "scheduler": scheduler("SCMScheduler"), **_NO_TEXT}


@cache
def _sana_by_dpm():
    config = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    return {**_sana(), "scheduler": scheduler("DPMSolverMultistepScheduler", **config)}


@cache
def _lumina_2():
    transformer = network(
        "Lumina2Transformer2DModel",
        sample_size=4,
        patch_size=2,
        in_channels=4,
        hidden_size=24,
        num_layers=1,
        num_refiner_layers=1,
        num_attention_heads=3,
        num_kv_heads=1,
        multiple_of=2,
        axes_dim_rope=(4, 2, 2),
        axes_lens=(128, 128, 128),
        cap_feat_dim=16,
    )
    return {"transformer": transformer, "vae": None, "scheduler": scheduler(_FLOW, shift=6.0), **_NO_TEXT}


@cache
def _lumina():
    transformer = network(
        "LuminaNextDiT2DModel",
        sample_size=4,
        patch_size=2,
        in_channels=4,
        hidden_size=24,
        num_layers=2,
        num_attention_heads=3,
        num_kv_heads=1,
        multiple_of=16,
        ffn_dim_multiplier=None,
        norm_eps=1e-5,
        learn_sigma=True,
        qk_norm=True,
        cross_attention_dim=16,
        scaling_factor=1.0,
    )
    return {"transformer": transformer, "vae": None, "scheduler": scheduler(_FLOW), **_NO_TEXT}


@cache
def _aura():
    transformer = network(
        "AuraFlowTransformer2DModel",
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_projection_dim=16,
        joint_attention_dim=16,
        out_channels=4,
        pos_embed_max_size=16,
    )
    return {"transformer": transformer, "vae": None, "scheduler": scheduler(_FLOW, shift=1.73), **_NO_TEXT}


@cache
def _cogview_4():
    transformer = network(
        "CogView4Transformer2DModel",
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=4,
        num_attention_heads=4,
        out_channels=4,
        text_embed_dim=16,
        time_embed_dim=8,
        condition_dim=4,
    )
    flow = {"base_shift": 0.25, "max_shift": 0.75, "base_image_seq_len": 256, "use_dynamic_shifting": True}
    return {
        "transformer": transformer,
        "vae": None,
        "scheduler": scheduler(_FLOW, **flow, time_shift_type="linear"),
        **_NO_TEXT,
    }


@cache
def _qwen():
    transformer = network(
        "QwenImageTransformer2DModel",
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(8, 4, 4),
    )
    flow = {"use_dynamic_shifting": True, "shift_terminal": 0.02}
    return {"transformer": transformer, "vae": None, "scheduler": scheduler(_FLOW, **flow), **_NO_TEXT}


@cache
def _z_image():
    transformer = network(
        "ZImageTransformer2DModel",
        in_channels=4,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[8, 4, 4],
        axes_lens=[256, 32, 32],
    )
    return {"transformer": transformer, "vae": None, "scheduler": scheduler(_FLOW, shift=3.0), **_NO_TEXT}


@cache
def _hunyuan():
    transformer = network(
        "HunyuanDiT2DModel",
        sample_size=8,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        in_channels=4,
        cross_attention_dim=16,
        cross_attention_dim_t5=16,
        pooled_projection_dim=16,
        hidden_size=16,
        text_len=6,
        text_len_t5=6,
    )
    return {
        "transformer": transformer,
        "vae": None,
        "scheduler": scheduler("DDPMScheduler", prediction_type="v_prediction", clip_sample=False),
        **_NO_TEXT,
        "text_encoder_2": None,
        "tokenizer_2": None,
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }


_QWEN_TEXT = {
    **_UNMASKED,
    "prompt_embeds_mask": _MASKED["prompt_attention_mask"],
    "negative_prompt_embeds_mask": _MASKED["negative_prompt_attention_mask"],
}
_HUNYUAN_TEXT = _MASKED | {f"{name}_2": value for name, value in _MASKED.items() if value is not None}
_LATENT = {"height": 32, "width": 32, "output_type": "latent"}

CASES = (
    Shown("PixArtAlphaPipeline", _pixart, _PIXART),
    Shown("PixArtSigmaPipeline", _pixart, _PIXART),
    Shown("PixArtSigmaPAGPipeline", _pixart, {**_PIXART, "pag_scale": 2.0}),
    Shown("SanaPipeline", _sana_by_dpm, {**_PIXART}),
    Shown("SanaPAGPipeline", _sana, {**_PIXART, "pag_scale": 2.0}),
    Shown(
        "SanaSprintPipeline",
        _sana_sprint,
        {
            **{name: _PIXART[name] for name in ("prompt_embeds", "prompt_attention_mask", "height", "width")},
            "output_type": "latent",
            "use_resolution_binning": False,
            "num_inference_steps": 2,
        },
        label="SanaSprintPipeline with SCMScheduler",
        way="diffusers",
    ),
    Shown("LuminaPipeline", _lumina, {**_MASKED, **_LATENT}),
    Shown("Lumina2Pipeline", _lumina_2, {**_MASKED, **_LATENT}),
    Shown("AuraFlowPipeline", _aura, {**_MASKED, **_LATENT}),
    Shown("CogView4Pipeline", _cogview_4, {**_UNMASKED, **_LATENT}),
    Shown("QwenImagePipeline", _qwen, {**_QWEN_TEXT, **_LATENT}),
    Shown(
        "ZImagePipeline",
        _z_image,
        {
            **_LATENT,
            "prompt_embeds": list(tensor(2, 6, 16)),
            "negative_prompt_embeds": list(tensor(2, 6, 16, seed=2)),
        },
    ),
    Shown("HunyuanDiTPipeline", _hunyuan, {**_HUNYUAN_TEXT, **_LATENT, "use_resolution_binning": False}),
)
