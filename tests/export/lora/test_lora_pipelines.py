"""LoRAs in exported pipelines: the pictures of diffusers with the same LoRA."""

import lora_files
import numpy as np
import pytest
import tiny_pipelines
import tolerances
import torch
from diffusers.utils import convert_state_dict_to_kohya
from safetensors.torch import save_file

import stepfuse as sf
from stepfuse.export import ExportError, fuse_lora, unfuse_lora

pytestmark = pytest.mark.slow  # two pipelines are exported for a handful of pictures

LAYERS = {
    "StableDiffusionXLPipeline": {
        "unet": [*lora_files.ATTENTION, "ff.net.0.proj", "ff.net.2", "conv1", "conv2", "proj_in", "proj_out"],
        "text_encoder": lora_files.CLIP,
        "text_encoder_2": lora_files.CLIP,
    },
    "StableDiffusion3Pipeline": {
        "transformer": [*lora_files.ATTENTION, "add_q_proj", "add_k_proj", "to_add_out", "ff.net.2"]
    },
}
PROMPT, STEPS, SCALE = tiny_pipelines.PROMPTS[:1], 3, 0.7


@pytest.fixture(scope="module", params=LAYERS)
def name(request):
    return request.param


@pytest.fixture
def bundle(name, exported):
    return exported(name)


@pytest.fixture(scope="module", params=["peft", "kohya"])
def lora(request, name, tmp_path_factory):
    state = lora_files.random_state(name, LAYERS[name])
    if request.param == "kohya" and name == "StableDiffusionXLPipeline":
        state = convert_state_dict_to_kohya(state)
        assert {key.split("_")[1] for key in state} == {"unet", "te1", "te2"}
    path = tmp_path_factory.mktemp("lora") / f"{request.param}.safetensors"
    save_file(state, path)
    return path


def pixels(bundle, latents):
    with sf.TextToImage.load(bundle, threads=1) as pipe:
        return pipe(PROMPT, latents=latents, steps=STEPS).pixels


def test_pictures_are_those_of_diffusers_with_the_lora(name, bundle, lora, tmp_path):
    latents = sf.normal(5, (1, *bundle.info.shape))
    pipe = tiny_pipelines.tiny_pipeline(name)
    pipe.load_lora_weights(lora)
    pipe.fuse_lora(lora_scale=SCALE)
    with torch.no_grad():
        given = {"latents": torch.from_numpy(latents), "num_inference_steps": STEPS, "output_type": "np"}
        want = pipe(PROMPT, **given).images
    got = pixels(fuse_lora(bundle, lora, tmp_path / "fused", scale=SCALE), latents)
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerances.PICTURE)
    assert np.abs(pixels(bundle, latents) - want).max() > 10 * tolerances.PICTURE


def test_taken_out_of_a_pipeline_every_file_is_as_it_was(bundle, lora, tmp_path):
    fused = fuse_lora(bundle, lora, tmp_path / "fused")
    assert fused.files["denoiser.onnx"] != bundle.files["denoiser.onnx"]
    assert unfuse_lora(fused, tmp_path / "restored").files == bundle.files


def test_a_lora_of_another_pipeline_is_refused(name, bundle, tmp_path):
    [other] = LAYERS.keys() - {name}
    path = tmp_path / "other.safetensors"
    save_file(lora_files.random_state(other, LAYERS[other]), path)
    with pytest.raises(ExportError, match=r"other must fit .*: \d+ of \d+ pairs do; this pipeline has no"):
        fuse_lora(bundle, path, tmp_path / "fused")
