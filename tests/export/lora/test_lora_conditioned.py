"""LoRAs of inpainting models, of the refiner and beside ControlNets: the pictures of diffusers with the same LoRA."""

import sys

import numpy as np
import pytest
import tiny_pipelines
import tolerances
import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file

import stepfuse as sf
from stepfuse.export import fuse_lora

pytestmark = pytest.mark.slow  # three pipelines are exported for a handful of pictures

PROMPT, STEPS = tiny_pipelines.PROMPTS[:1], 3
PICTURE = np.random.default_rng(2).uniform(0, 1, (1, 16, 16, 3)).astype(np.float32)
MASK = np.zeros((1, 16, 16), dtype=np.float32)
MASK[:, 6:] = 1

CALLS = {  # arguments of ours, and of diffusers
    "StableDiffusionInpaintPipeline": (
        {"image": PICTURE, "mask": MASK, "strength": 1.0},
        {"image": PICTURE, "mask_image": torch.from_numpy(MASK)[:, None], "strength": 1.0},
    ),
    "StableDiffusionControlNetPipeline": (
        {"control": {"controlnet": PICTURE}},
        {"image": torch.from_numpy(PICTURE.transpose(0, 3, 1, 2))},
    ),
    "StableDiffusionXLImg2ImgPipeline": ({"image": PICTURE, "strength": 1.0}, {"image": PICTURE, "strength": 1.0}),
}


@pytest.mark.parametrize("name", CALLS)
def test_pictures_are_those_of_diffusers_with_the_lora(exported, tmp_path, monkeypatch, name):
    torch.manual_seed(4)
    pipe = tiny_pipelines.tiny_pipeline(name)
    settings = LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_v", "conv1"], init_lora_weights=False)
    pipe.unet.add_adapter(settings)
    state = {f"unet.{key}": value.contiguous() for key, value in get_peft_model_state_dict(pipe.unet).items()}
    save_file(state, tmp_path / "lora.safetensors")

    def noise(shape, **_):
        return torch.from_numpy(sf.normal(5, tuple(shape)[1:])[None])

    monkeypatch.setattr(sys.modules[type(pipe).__module__], "randn_tensor", noise)
    monkeypatch.setattr(
        sys.modules["diffusers.models.autoencoders.vae"], "randn_tensor", lambda shape, **_: torch.zeros(shape)
    )
    ours, theirs = CALLS[name]
    with torch.no_grad():
        want = pipe(PROMPT, num_inference_steps=STEPS, output_type="np", **theirs).images

    def pixels(bundle):
        with sf.TextToImage.load(bundle, threads=1) as loaded:
            return loaded(PROMPT, seed=5, steps=STEPS, **ours).pixels

    fused = fuse_lora(exported(name), tmp_path / "lora.safetensors", tmp_path / "fused")
    np.testing.assert_allclose(pixels(fused), want, rtol=0, atol=tolerances.PICTURE)
    assert np.abs(pixels(exported(name)) - want).max() > 10 * tolerances.PICTURE
