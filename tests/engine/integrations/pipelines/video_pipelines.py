"""Frames and sound: latents of three and of five dimensions."""

from functools import cache

import torch
from shown import Shown, network, scheduler, tensor

_NO_TEXT = {"text_encoder": None, "tokenizer": None}
_TEXT = {"prompt_embeds": tensor(2, 6, 16), "negative_prompt_embeds": tensor(2, 6, 16, seed=2)}
_MASKS = {
    "prompt_attention_mask": torch.ones(2, 6, dtype=torch.long),
    "negative_prompt_attention_mask": torch.tensor([[1] * 6, [1] * 3 + [0] * 3]),
}
_SIZE = {"height": 32, "width": 32, "num_frames": 9, "output_type": "latent"}
_FLOW = "FlowMatchEulerDiscreteScheduler"


def _wan_transformer(**config):
    return network(
        "WanTransformer3DModel",
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=16,
        ffn_dim=32,
        num_layers=1,
        rope_max_seq_len=32,
        **config,
    )


@cache
def _wan():
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    return {
        "transformer": _wan_transformer(),
        "vae": None,
        "scheduler": scheduler("UniPCMultistepScheduler", **flow),
        **_NO_TEXT,
    }


@cache
def _wan_2():
    second = _wan_transformer(cross_attn_norm=False)
    return {**_wan(), "transformer_2": second, "boundary_ratio": 0.875}


@cache
def _ltx():
    transformer = network(
        "LTXVideoTransformer3DModel",
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=1,
        caption_channels=16,
    )
    return {
        "transformer": transformer,
        "vae": None,
        "scheduler": scheduler(_FLOW, use_dynamic_shifting=True, shift_terminal=0.1),
        **_NO_TEXT,
    }


def _cogvideo(name):
    @cache
    def parts():
        transformer = network(
            "CogVideoXTransformer3DModel",
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=4,
            out_channels=4,
            time_embed_dim=2,
            text_embed_dim=16,
            num_layers=1,
            sample_width=4,
            sample_height=4,
            sample_frames=9,
            patch_size=2,
            max_text_seq_length=6,
        )
        config = {"prediction_type": "v_prediction", "timestep_spacing": "trailing", "rescale_betas_zero_snr": True}
        return {"transformer": transformer, "vae": None, "scheduler": scheduler(name, **config), **_NO_TEXT}

    return parts


@cache
def _mochi():
    transformer = network(
        "MochiTransformer3DModel",
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        pooled_projection_dim=16,
        in_channels=12,
        text_embed_dim=16,
        time_embed_dim=4,
        max_sequence_length=6,
    )
    return {
        "transformer": transformer,
        "vae": None,
        "scheduler": scheduler(_FLOW, invert_sigmas=True),
        **_NO_TEXT,
    }


@cache
def _hunyuan():
    transformer = network(
        "HunyuanVideoTransformer3DModel",
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=10,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        patch_size=1,
        patch_size_t=1,
        guidance_embeds=True,
        text_embed_dim=16,
        pooled_projection_dim=8,
        rope_axes_dim=(2, 4, 4),
    )
    return {
        "transformer": transformer,
        "vae": None,
        "scheduler": scheduler(_FLOW, shift=7.0),
        **_NO_TEXT,
        "text_encoder_2": None,
        "tokenizer_2": None,
    }


@cache
def _ltx_from_image():
    vae = network(
        "AutoencoderKLLTXVideo",
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        decoder_inject_noise=(False, False, False, False, False),
        upsample_residual=(False, False, False, False),
        upsample_factor=(1, 1, 1, 1),
        patch_size=1,
        patch_size_t=1,
        encoder_causal=True,
        decoder_causal=False,
    )
    return {**_ltx(), "vae": vae}


@cache
def _latte():
    transformer = network(
        "LatteTransformer3DModel",
        sample_size=4,
        num_layers=1,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=16,
        in_channels=4,
        cross_attention_dim=16,
        out_channels=8,
        video_length=2,
        norm_type="ada_norm_single",
    )
    return {
        "transformer": transformer,
        "vae": None,
        "scheduler": scheduler("DDIMScheduler", clip_sample=False),
        **_NO_TEXT,
    }


@cache
def _audio():
    transformer = network(
        "StableAudioDiTModel",
        sample_size=4,
        in_channels=3,
        num_layers=2,
        attention_head_dim=4,
        num_attention_heads=2,
        num_key_value_attention_heads=2,
        out_channels=3,
        cross_attention_dim=16,
        time_proj_dim=8,
        global_states_input_dim=32,
        cross_attention_input_dim=16,
    )
    vae = network(
        "AutoencoderOobleck",
        encoder_hidden_size=6,
        downsampling_ratios=[1, 2],
        decoder_channels=3,
        decoder_input_channels=3,
        audio_channels=2,
        channel_multiples=[2, 4],
        sampling_rate=4,
    )
    return {
        "transformer": transformer,
        "vae": vae,
        "projection_model": network(
            "StableAudioProjectionModel", text_encoder_dim=16, conditioning_dim=16, min_value=0, max_value=32
        ),
        "scheduler": scheduler(
            "EDMDPMSolverMultistepScheduler",
            solver_order=2,
            prediction_type="v_prediction",
            sigma_data=1.0,
            sigma_schedule="exponential",
        ),
        **_NO_TEXT,
    }


CASES = (
    Shown("WanPipeline", _wan, {**_TEXT, **_SIZE}),
    Shown("WanPipeline", _wan_2, {**_TEXT, **_SIZE, "guidance_scale_2": 3.0}, label="WanPipeline with two networks"),
    Shown("LTXPipeline", _ltx, {**_TEXT, **_MASKS, **_SIZE}),
    Shown("LTXImageToVideoPipeline", _ltx_from_image, {**_TEXT, **_MASKS, **_SIZE, "image": torch.rand(2, 3, 32, 32)}),
    Shown(
        "MochiPipeline", _mochi, {**_TEXT, **_MASKS, **_SIZE}, label="MochiPipeline with invert_sigmas", way="diffusers"
    ),
    Shown(
        "HunyuanVideoPipeline",
        _hunyuan,
        {
            **_SIZE,
            "prompt_embeds": _TEXT["prompt_embeds"],
            "pooled_prompt_embeds": tensor(2, 8),
            "prompt_attention_mask": _MASKS["prompt_attention_mask"],
        },
    ),
    Shown("CogVideoXPipeline", _cogvideo("CogVideoXDDIMScheduler"), {**_TEXT, **_SIZE}),
    Shown(
        "CogVideoXPipeline",
        _cogvideo("CogVideoXDPMScheduler"),
        {**_TEXT, **_SIZE, "use_dynamic_cfg": True},
        label="CogVideoXPipeline with CogVideoXDPMScheduler",
    ),
    Shown(
        "LattePipeline",
        _latte,
        {**_TEXT, "negative_prompt": None, "video_length": 2, "height": 32, "width": 32, "output_type": "latent"},
    ),
    Shown(
        "StableAudioPipeline",
        _audio,
        {
            **_TEXT,
            "attention_mask": _MASKS["prompt_attention_mask"],
            "negative_attention_mask": _MASKS["negative_prompt_attention_mask"],
            "audio_end_in_s": 2.0,
            "output_type": "latent",
        },
        label="StableAudioPipeline with EDMDPMSolverMultistepScheduler",
    ),
)
