"""Text to image by transformers, as tiny as in ``tiny_pipelines``, which makes and saves them: ``NAMES`` lists them."""

NAMES = ("PixArtSigmaPipeline", "SanaPipeline", "ZImagePipeline", "QwenImagePipeline")


def _pixart(sample_size):
    def parts(scratch):
        from diffusers import PixArtTransformer2DModel
        from tiny_pipelines import SIZE, _scheduler, _widen, t5_tokenizer, vae
        from transformers import T5Config, T5EncoderModel

        tokenizer = t5_tokenizer()
        config = T5Config(
            vocab_size=len(tokenizer),
            d_model=16,
            d_kv=8,
            d_ff=32,
            num_layers=2,
            num_heads=2,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
        )
        network = PixArtTransformer2DModel(
            sample_size=sample_size or SIZE,
            num_layers=2,
            patch_size=2,
            attention_head_dim=12,
            num_attention_heads=2,
            caption_channels=16,
            in_channels=4,
            cross_attention_dim=24,
            out_channels=8,
        )
        _widen(network.transformer_blocks)
        return {
            "transformer": network,
            "vae": vae(scaling_factor=0.13025),
            "scheduler": _scheduler("DPMSolverMultistepScheduler"),
            "text_encoder": T5EncoderModel(config),
            "tokenizer": tokenizer,
        }

    return parts


def _sana(scratch):
    from diffusers import SanaTransformer2DModel
    from tiny_pipelines import SIZE, _scheduler, _widen
    from transformers import Gemma2Config, Gemma2Model

    tokenizer = gemma_tokenizer()
    config = Gemma2Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        query_pre_attn_scalar=8,
        max_position_embeddings=8192,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    network = SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=8,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=16,
        sample_size=SIZE,
        patch_size=1,
    )
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    _widen(network.transformer_blocks)
    return {
        "transformer": network,
        "vae": deep_compression(),
        "scheduler": _scheduler("DPMSolverMultistepScheduler", **flow),
        "text_encoder": _widen(Gemma2Model(config)),
        "tokenizer": tokenizer,
    }


def _z_image(scratch):
    import torch
    from diffusers import ZImageTransformer2DModel
    from tiny_pipelines import _scheduler, _widen, vae
    from transformers import Qwen3Config, Qwen3Model

    tokenizer = qwen_tokenizer()
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=4096,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    network = _widen(
        ZImageTransformer2DModel(
            in_channels=4,
            dim=32,
            n_layers=2,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=16,
            axes_dims=[8, 4, 4],
            axes_lens=[1024, 32, 32],
        )
    )
    for padding in (network.x_pad_token, network.cap_pad_token):  # zeros until they are trained
        torch.nn.init.normal_(padding)
    return {
        "transformer": network,
        "vae": vae(scaling_factor=0.3611, shift_factor=0.1159),
        "scheduler": _scheduler("FlowMatchEulerDiscreteScheduler", shift=3.0),
        "text_encoder": _widen(Qwen3Model(config)),
        "tokenizer": tokenizer,
    }


def _qwen_image(scratch):
    from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel
    from tiny_pipelines import _scheduler, _widen
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    tokenizer = qwen_tokenizer()
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 4096,
        "rope_parameters": {"mrope_section": [1, 1, 2], "rope_type": "default", "rope_theta": 1000000.0},
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
    }
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}
    network = QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(8, 4, 4),
    )
    flow = {"use_dynamic_shifting": True, "shift_terminal": 0.02, "base_image_seq_len": 4, "max_image_seq_len": 64}
    return {
        "transformer": _widen(network),
        "vae": AutoencoderKLQwenImage(
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 2],
            num_res_blocks=1,
            temperal_downsample=[False],
            latents_mean=[0.1, -0.2, 0.3, 0.0],
            latents_std=[1.0, 1.5, 0.8, 2.0],
        ),
        "scheduler": _scheduler("FlowMatchEulerDiscreteScheduler", **flow),
        "text_encoder": _widen(
            Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision))
        ),
        "tokenizer": tokenizer,
    }


CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def qwen_tokenizer():
    """A Qwen tokenizer of single bytes and a few merges, with a chat template."""
    from tiny_pipelines import _byte_letters
    from transformers import Qwen2TokenizerFast

    merges = [("c", "a"), ("ca", "t"), ("r", "e"), ("Ġ", "re"), ("Ġre", "d"), ("t", "h"), ("th", "e"), ("Ġ", "the")]
    words = [*_byte_letters().values(), *("".join(merge) for merge in merges), "<|endoftext|>"]
    vocabulary = {word: index for index, word in enumerate(words)}
    return Qwen2TokenizerFast(
        vocab=vocabulary,
        merges=merges,
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        chat_template=CHAT,
        model_max_length=4096,
    )


def gemma_tokenizer():
    """A Gemma tokenizer of letters and a few words; other characters are bytes."""
    from transformers import GemmaTokenizerFast

    merges = [("▁", "c"), ("▁c", "a"), ("▁ca", "t"), ("▁", "t"), ("h", "e"), ("▁t", "he"), ("▁", "r"), ("e", "d")]
    words = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    words += [*map(chr, range(33, 127)), *("".join(merge) for merge in merges)]
    vocabulary = {word: index for index, word in enumerate(words)}
    return GemmaTokenizerFast(vocab=vocabulary, merges=merges, model_max_length=8192)


def deep_compression():
    """An ``AutoencoderDC`` of two levels: twice as many pixels as latents."""
    from diffusers import AutoencoderDC

    return AutoencoderDC(
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 16),
        decoder_block_out_channels=(8, 16),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        upsample_block_type="interpolate",
        downsample_block_type="pixel_unshuffle",
        decoder_act_fns="silu",
        scaling_factor=0.41407,
    )


PARTS = {
    "PixArtAlphaPipeline": _pixart(128),
    "PixArtSigmaPipeline": _pixart(None),
    "SanaPipeline": _sana,
    "ZImagePipeline": _z_image,
    "QwenImagePipeline": _qwen_image,
}
