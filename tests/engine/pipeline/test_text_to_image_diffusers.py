"""Pictures of exported pipelines against diffusers' own calls on the same latents; a half of it without torch."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
import tiny_pipelines
import tolerances

import stepfuse as sf
from stepfuse.bundle.pipeline_info import PipelineInfo
from stepfuse.cli.latents import pictures_of
from stepfuse.integrations.scheduler_config import read_scheduler
from stepfuse.pipeline.prompts import PromptCutWarning
from stepfuse.samplers.noise import POSTERIOR

NAMES = [name for name in tiny_pipelines.NAMES if name.startswith("Stable") and not name.endswith("-lcm")]
PROMPTS, NEGATIVES = tiny_pipelines.PROMPTS, ["the dog", ""]
STEPS, SEED = 5, 3


@pytest.fixture(scope="module")
def theirs():
    """diffusers' pipeline of a name."""
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    made = {}

    def get(name):
        if name not in made:
            made[name] = tiny_pipelines.tiny_pipeline(name)
        return made[name]

    return get


@pytest.fixture(scope="module")
def ours(exported):
    """The same, exported."""
    made = {}

    def get(name):
        if name not in made:
            made[name] = sf.TextToImage.load(exported(name), threads=1)
        return made[name]

    yield get
    for pipe in made.values():
        pipe.close()


def noise(n, shape, seed=SEED, **options):
    return np.stack([sf.normal(seed + i, shape, **options) for i in range(n)])


def diffusers_pixels(pipe, *prompt, latents, **arguments):
    import torch

    with torch.no_grad():
        return pipe(
            *prompt, latents=torch.from_numpy(latents), num_inference_steps=STEPS, output_type="np", **arguments
        ).images


def assert_same(got, want):
    assert got.shape == want.shape
    assert want.std() > 0.02  # a picture, and not clipped to one colour
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerances.PICTURE)


# One prompt; a batch with negative prompts; another size; no guidance.
CALLS = {
    "one": (PROMPTS[:1], {}),
    "batch": (PROMPTS, {"negative_prompt": NEGATIVES, "guidance_scale": 4.0}),
    "size": (PROMPTS[:1], {"negative_prompt": NEGATIVES[:1], "width": 24, "height": 16}),
    "unguided": (PROMPTS, {"guidance_scale": 1.0}),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", NAMES)
def test_pictures_are_those_of_diffusers(ours, theirs, name, call):
    prompts, arguments = CALLS[call]
    pipe = ours(name)
    channels = pipe.bundle.info.shape[0]
    latents = noise(len(prompts), (channels, arguments.get("height", 16) // 2, arguments.get("width", 16) // 2))
    want = diffusers_pixels(theirs(name), prompts, latents=latents, **arguments)
    assert_same(pipe(prompts, latents=latents, steps=STEPS, **arguments).pixels, want)


@pytest.mark.parametrize("name", NAMES)
def test_guidance_and_the_negative_prompt_have_an_effect(ours, name):
    latents = noise(1, ours(name).bundle.info.shape)
    pictures = [
        ours(name)(PROMPTS[0], latents=latents, steps=STEPS, **arguments).pixels
        for arguments in ({}, {"guidance_scale": 1.0}, {"negative_prompt": "the dog"})
    ]
    for one, other in ((0, 1), (0, 2)):
        assert np.abs(pictures[one] - pictures[other]).max() > 100 * tolerances.PICTURE


SCHEDULERS = {
    "ddim-trailing": ("DDIMScheduler", {"timestep_spacing": "trailing", "set_alpha_to_one": False}),
    "ddim-clipped": ("DDIMScheduler", {"clip_sample": True, "clip_sample_range": 1.5}),
    "ddim-thresholding": ("DDIMScheduler", {"thresholding": True, "sample_max_value": 2.0}),
    "dpm-karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "euler-linspace": ("EulerDiscreteScheduler", {"timestep_spacing": "linspace"}),
    "heun": ("HeunDiscreteScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True, "set_alpha_to_one": False}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "edm": ("EDMDPMSolverMultistepScheduler", {}),
    "zero-snr": (
        "DDIMScheduler",
        {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"},
    ),
}


@pytest.mark.parametrize("case", SCHEDULERS)
def test_every_scheduler_that_the_manifest_names(ours, theirs, case, monkeypatch):
    import diffusers

    kind, config = SCHEDULERS[case]
    name = "StableDiffusionPipeline-v" if "prediction_type" in config else "StableDiffusionPipeline"
    if kind == "DDIMScheduler":
        config = {"clip_sample": False, **config}
    betas = {} if kind.startswith("EDM") else tiny_pipelines.STABLE_DIFFUSION
    scheduler = getattr(diffusers, kind)(**{**betas, **config})
    settings = read_scheduler({**scheduler.config, "_class_name": kind})
    bundle = ours(name).bundle
    info = dataclasses.replace(
        bundle.info,
        schedule=settings.schedule,
        prediction_type=settings.prediction_type,
        defaults={"steps": STEPS, "guidance_scale": 3.0, **settings.defaults},
    )
    latents = noise(2, info.shape)
    pipe = theirs(name)
    monkeypatch.setattr(pipe, "scheduler", scheduler)
    want = diffusers_pixels(pipe, PROMPTS, latents=latents, guidance_scale=3.0)
    with sf.TextToImage.load(dataclasses.replace(bundle, info=info), threads=1) as pipe:
        assert_same(pipe(PROMPTS, latents=latents).pixels, want)


@pytest.mark.parametrize("kind", ["exponential", "linear"])
def test_a_shift_that_follows_from_the_size(ours, theirs, kind, monkeypatch):
    import diffusers

    entries = {"base_shift": 0.7, "max_shift": 2.0, "base_image_seq_len": 4, "max_image_seq_len": 64}
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(
        shift=3.0, use_dynamic_shifting=True, time_shift_type=kind, **entries
    )
    settings = read_scheduler({**scheduler.config, "_class_name": "FlowMatchEulerDiscreteScheduler"})
    bundle, pipe = ours("StableDiffusion3Pipeline").bundle, theirs("StableDiffusion3Pipeline")
    monkeypatch.setattr(pipe, "scheduler", scheduler)
    info = dataclasses.replace(bundle.pipeline, dynamic_shift=settings.dynamic_shift)
    assert PipelineInfo.from_config(json.loads(json.dumps(info.config))) == info
    with sf.TextToImage.load(dataclasses.replace(bundle, pipeline=info), threads=1) as moving:
        for width in (16, 24):
            latents = noise(1, (bundle.info.shape[0], 8, width // 2))
            size = {"width": width, "height": 16}
            want = diffusers_pixels(pipe, PROMPTS[:1], latents=latents, **size)
            assert_same(moving(PROMPTS[:1], latents=latents, steps=STEPS, **size).pixels, want)
            fixed = ours("StableDiffusion3Pipeline")(PROMPTS[:1], latents=latents, steps=STEPS, **size).pixels
            assert np.abs(fixed - want).max() > 100 * tolerances.PICTURE


@pytest.mark.parametrize(
    ("sample_posterior", "strength"),
    [(False, 0.6), (True, 0.6), (False, 0.5)],  # of 5 steps: 3, or 2 and a half
    ids=["mean", "posterior", "part-of-a-step"],
)
@pytest.mark.parametrize("name", ["StableDiffusionPipeline", "StableDiffusionXLPipeline", "StableDiffusion3Pipeline"])
def test_pictures_to_begin_with(ours, theirs, name, sample_posterior, strength, monkeypatch):
    import diffusers
    import torch

    pipe = getattr(diffusers, name.replace("Pipeline", "Img2ImgPipeline"))
    components = dict(theirs(name).components)
    if name == "StableDiffusionPipeline":
        components["requires_safety_checker"] = False
    if name == "StableDiffusionXLPipeline":
        components["add_watermarker"] = False
    pipe = pipe(**components)
    pipe.set_progress_bar_config(disable=True)
    image = np.random.default_rng(0).uniform(0, 1, (2, 16, 16, 3)).astype(np.float32)

    def our_noise(shape, **_):
        return torch.from_numpy(noise(shape[0], tuple(shape[1:])))

    def our_posterior(shape, **_):  # diffusers samples all of a batch, or one by one
        return torch.from_numpy(next(posteriors)[: shape[0]]) * sample_posterior

    posteriors = iter([noise(2, ours(name).bundle.info.shape, stream=POSTERIOR)])
    monkeypatch.setattr(sys.modules[type(pipe).__module__], "randn_tensor", our_noise)
    monkeypatch.setattr(sys.modules["diffusers.models.autoencoders.vae"], "randn_tensor", our_posterior)
    arguments = {"image": image, "strength": strength, "guidance_scale": 3.0}
    with torch.no_grad():
        want = pipe(PROMPTS, num_inference_steps=STEPS, output_type="np", **arguments).images
    got = ours(name)(PROMPTS, steps=STEPS, seed=SEED, sample_posterior=sample_posterior, **arguments)
    assert_same(got.pixels, want)


def test_embeddings_are_diffusers_own(ours, theirs):
    import torch

    with torch.no_grad():
        prompt, _, pooled, _ = theirs("StableDiffusionXLPipeline").encode_prompt(PROMPTS, device="cpu")
    text = ours("StableDiffusionXLPipeline").encode_prompt(PROMPTS)
    np.testing.assert_allclose(text["encoder_hidden_states"], prompt.numpy(), rtol=0, atol=tolerances.EMBEDDING)
    np.testing.assert_allclose(text["text_embeds"], pooled.numpy(), rtol=0, atol=tolerances.EMBEDDING)


def test_a_prompt_beyond_the_context_is_cut_where_diffusers_cuts_it(ours, theirs):
    prompt = "the red cat in the rain " * 4
    pipe = ours("StableDiffusionPipeline")
    latents = noise(1, pipe.bundle.info.shape)
    want = diffusers_pixels(theirs("StableDiffusionPipeline"), prompt, latents=latents)
    with pytest.warns(PromptCutWarning, match="is not read"):
        got = pipe(prompt, latents=latents, steps=STEPS)
    assert_same(got.pixels, want)


def test_classes_without_prompts_are_decoded_too(exported, theirs, monkeypatch):
    import torch

    bundle = exported("DiTPipeline")
    pipe = theirs("DiTPipeline")

    def our_noise(shape, **_):
        return torch.from_numpy(noise(shape[0], tuple(shape[1:])))

    monkeypatch.setattr(sys.modules[type(pipe).__module__], "randn_tensor", our_noise)
    with torch.no_grad():
        want = pipe([7, 400], guidance_scale=4.0, num_inference_steps=STEPS, output_type="np").images
    with sf.Engine.load(bundle, threads=1) as engine:
        settings = {"cond": [7, 400], "guidance_scale": 4.0, "steps": STEPS}
        samples = engine.sample(2, noise=noise(2, bundle.info.shape), **settings)
    pictures, (low, high) = pictures_of(bundle, samples, 1)
    got = np.clip((pictures - low) / (high - low), 0, 1).transpose(0, 2, 3, 1)
    assert_same(got, want)


WITHOUT = """
import sys
for name in ("torch", "transformers", "diffusers", "onnx", "onnxscript", "safetensors", "scipy"):
    sys.modules[name] = None  # importing it raises ImportError
from stepfuse.cli import app
app(sys.argv[1:])
"""


@pytest.mark.parametrize("name", NAMES)
def test_the_command_line_samples_a_prompt_without_torch(exported, theirs, name, tmp_path):
    path = tmp_path / "pixels.npy"
    options = ["--negative-prompt", "the dog", "-n", 2, "--steps", STEPS, "--seed", SEED, "--threads", 1, "-o", path]
    command = [sys.executable, "-c", WITHOUT, "sample", exported(name).path, "--prompt", PROMPTS[0], *options]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    latents = noise(2, exported(name).info.shape)
    want = diffusers_pixels(
        theirs(name), PROMPTS[0], latents=latents, negative_prompt="the dog", num_images_per_prompt=2
    )
    assert_same(np.load(path), want)
