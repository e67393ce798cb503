"""Stable Diffusion pipelines of random weights and two sizes, and one picture of each in five ways."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Picture = npt.NDArray[np.float32]
Generate = Callable[[], Picture]

PROMPT, NEGATIVE, GUIDANCE, TOKENS = "a red cat in the rain", "a grey dog", 5.0, 77
#: Pixels a side, UNet's channels by level, width of its conditioning and of the text encoder.
SIZES: dict[str, tuple[int, tuple[int, ...], int]] = {"tiny": (64, (16, 32), 32), "mid": (256, (96, 192, 384), 256)}
#: As ``tiny``, of fewer layers: most of a quick run is the export, whose time grows with the layers.
QUICK_SIZE = "quick"
SIZES[QUICK_SIZE] = SIZES["tiny"]


def save(size: str, folder: Path) -> int:
    """Writes a pipeline, the same weights each time; returns how many parameters its UNet has."""
    import diffusers
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel

    pixels, channels, width = SIZES[size]
    torch.manual_seed(0)
    tokenizer = _tokenizer()
    attention = len(channels) - 1
    layers = {"layers_per_block": 1} if size == QUICK_SIZE else {}
    unet = diffusers.UNet2DConditionModel(
        **layers,
        sample_size=pixels // 8,
        block_out_channels=channels,
        down_block_types=("CrossAttnDownBlock2D",) * attention + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * attention,
        cross_attention_dim=width,
        attention_head_dim=8,
        norm_num_groups=8,
    )
    levels = (32, 64, 128, 128) if size == "mid" else (8, 16, 16, 16)
    vae = diffusers.AutoencoderKL(
        block_out_channels=levels,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=pixels,
    )
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=1 if size == QUICK_SIZE else 4,
            num_attention_heads=4,
            max_position_embeddings=TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    scheduler = diffusers.DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        steps_offset=1,
        clip_sample=False,
        set_alpha_to_one=False,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe = diffusers.StableDiffusionPipeline(
            vae=vae,
            text_encoder=text,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipe.save_pretrained(folder)
    return int(sum(parameter.numel() for parameter in unet.parameters()))


def save_with_bundle(size: str, scratch: Path) -> int:
    """Writes a pipeline and its bundle, into ``pipeline`` and ``bundle``; returns as ``save`` does."""
    from stepfuse.export import from_diffusers

    parameters = save(size, scratch / "pipeline")
    from_diffusers(scratch / "pipeline", scratch / "bundle")
    return parameters


def latents(size: str) -> Picture:
    """The latents that all ways start from, shape (1, 4, h, w)."""
    side = SIZES[size][0] // 8
    return np.random.default_rng(0).standard_normal((1, 4, side, side), dtype=np.float32)


def eager(size: str, folder: Path, bundle: Path, steps: int) -> Generate:
    """The pipeline of diffusers itself, on torch."""
    return _of_pipeline(pipeline_of(folder), size, steps)


def compiled(size: str, folder: Path, bundle: Path, steps: int) -> Generate:
    """The same pipeline, its loop run by the engine."""
    from stepfuse.integrations.diffusers import compile

    return _of_pipeline(compile(pipeline_of(folder)), size, steps)


def compiled_with_bundle(size: str, folder: Path, bundle: Path, steps: int) -> Generate:
    """The same with the exported denoiser."""
    from stepfuse.integrations.diffusers import compile

    return _of_pipeline(compile(pipeline_of(folder), bundle=bundle), size, steps)


def python_loop(size: str, folder: Path, bundle: Path, steps: int) -> Generate:
    """The exported networks in ONNX Runtime, between them diffusers' scheduler and numpy, as optimum's pipelines do."""
    import onnxruntime as ort
    import torch
    from diffusers import DDIMScheduler
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    scheduler = DDIMScheduler.from_pretrained(folder / "scheduler")
    text, denoiser, vae = (
        ort.InferenceSession(str(bundle / f"{name}.onnx"), providers=["CPUExecutionProvider"])
        for name in ("text_encoder", "denoiser", "vae_decoder")
    )

    def generate() -> Picture:
        ids = tokenizer([NEGATIVE, PROMPT], padding="max_length", max_length=TOKENS, truncation=True)["input_ids"]
        embeds = text.run(["encoder_hidden_states"], {"input_ids": np.array(ids)})[0]
        scheduler.set_timesteps(steps)
        states = torch.from_numpy(latents(size)) * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            both = scheduler.scale_model_input(torch.cat([states] * 2), t)
            times = np.full(2, t.item(), dtype=np.float32)
            inputs = {"sample": both.numpy(), "timestep": times, "encoder_hidden_states": embeds}
            uncond, cond = torch.from_numpy(denoiser.run(["prediction"], inputs)[0]).chunk(2)
            states = scheduler.step(uncond + GUIDANCE * (cond - uncond), t, states, return_dict=False)[0]
        image = vae.run(["image"], {"latent": states.numpy()})[0]
        picture: Picture = (image / 2 + 0.5).clip(0, 1)[0].transpose(1, 2, 0)
        return picture

    return generate


def text_to_image(
    size: str, folder: Path, bundle: Path, steps: int, *, backend: str = "onnxruntime", precision: str = "float32"
) -> Generate:
    """The bundle alone: neither torch nor diffusers is imported."""
    import stepfuse as sf

    pipe = sf.TextToImage.load(bundle, backend=backend, precision=precision)

    def generate() -> Picture:
        arguments: dict[str, Any] = {"negative_prompt": NEGATIVE, "steps": steps, "guidance_scale": GUIDANCE}
        return pipe(PROMPT, latents=latents(size), **arguments).pixels[0]

    return generate


WAYS: dict[str, Callable[[str, Path, Path, int], Generate]] = {
    "diffusers eager": eager,
    "ONNX Runtime, Python loop": python_loop,
    "compile(pipe)": compiled,
    "compile(pipe, bundle)": compiled_with_bundle,
    "TextToImage": text_to_image,
}


def pipeline_of(folder: Path) -> Any:
    """The pipeline of diffusers."""
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _of_pipeline(pipe: Any, size: str, steps: int) -> Generate:
    import torch

    def generate() -> Picture:
        picture: Picture = pipe(
            PROMPT,
            negative_prompt=NEGATIVE,
            num_inference_steps=steps,
            guidance_scale=GUIDANCE,
            latents=torch.from_numpy(latents(size)),
            output_type="np",
        ).images[0]
        return picture

    return generate


def _tokenizer() -> Any:
    """A CLIP tokenizer that spells every word."""
    from transformers import CLIPTokenizer

    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    with tempfile.TemporaryDirectory() as scratch:
        vocabulary, merges = Path(scratch) / "vocab.json", Path(scratch) / "merges.txt"
        vocabulary.write_text(json.dumps({word: index for index, word in enumerate(words)}))
        merges.write_text("#version: 0.2\n")
        return CLIPTokenizer(str(vocabulary), str(merges), model_max_length=TOKENS)
