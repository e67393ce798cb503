"""Pipelines whose guidance is distilled: pictures against diffusers' own on the same latents, records and refusals."""

import itertools
import subprocess
import sys

import http_service
import numpy as np
import pytest
import tiny_pipelines
import tolerances
from PIL import Image
from typer.testing import CliRunner

import stepfuse as sf
from stepfuse.cli import app

PROMPTS = tiny_pipelines.PROMPTS
STEPS, SEED = 5, 3
FLUX = ["FluxPipeline", "FluxPipeline-schnell"]
EMBEDDED = ["FluxPipeline", "LatentConsistencyModelPipeline", "StableDiffusionXLPipeline-lcm"]
NAMES = [*EMBEDDED, "FluxPipeline-schnell"]

runner = CliRunner()


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


def diffusers_pixels(pipe, prompts, latents, seed=SEED, **arguments):
    import torch

    steps = itertools.count()

    def added(shape, **_):  # by a latent consistency model's scheduler
        return torch.from_numpy(noise(shape[0], tuple(shape[1:]), seed, step=next(steps), stream=1))

    height, width = latents.shape[2:]
    given = torch.from_numpy(latents)
    if "Flux" in type(pipe).__name__:
        given = pipe._pack_latents(given, len(latents), latents.shape[1], height, width)
    arguments = {"width": 2 * width, "height": 2 * height, "num_inference_steps": STEPS, **arguments}
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules[type(pipe.scheduler).__module__], "randn_tensor", added)
        return pipe(prompts, latents=given, output_type="np", **arguments).images


def assert_same(got, want):
    assert got.shape == want.shape
    assert want.std() > 0.02  # a picture, and not clipped to one colour
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerances.PICTURE)


def shape_of(pipe, width=16, height=16):
    return pipe.bundle.info.shape[0], height // 2, width // 2


@pytest.mark.parametrize("size", [(16, 16), (24, 16)], ids=["own", "wide"])
@pytest.mark.parametrize("name", NAMES)
def test_pictures_are_those_of_diffusers(ours, theirs, name, size):
    pipe = ours(name)
    latents = noise(2, shape_of(pipe, *size))
    want = diffusers_pixels(theirs(name), PROMPTS, latents)
    found = pipe(PROMPTS, latents=latents, steps=STEPS, width=size[0], height=size[1], seed=SEED)
    assert_same(found.pixels, want)


@pytest.mark.parametrize("name", EMBEDDED)
def test_requests_of_a_batch_have_their_own_scales(ours, theirs, name):
    pipe, scales = ours(name), (1.0, 2.0, 6.0)
    latents = noise(len(scales), shape_of(pipe))
    futures = [
        pipe.submit(sf.PromptRequest(PROMPTS[0], latents=latents[i], seed=SEED + i, steps=STEPS, guidance_scale=scale))
        for i, scale in enumerate(scales)
    ]
    found = [future.result() for future in futures]
    for i, scale in enumerate(scales):
        want = diffusers_pixels(theirs(name), PROMPTS[:1], latents[i : i + 1], SEED + i, guidance_scale=scale)
        assert_same(found[i].pixels, want)
        assert found[i].provenance[0].options["guidance_scale"] == scale
        assert found[i].facts[0]["guidance_scale"] == f"{scale:g}"
    alike = [pipe(PROMPTS[0], seed=SEED, steps=STEPS, guidance_scale=one).pixels for one in scales[1:]]
    assert np.abs(alike[0] - alike[1]).max() > 100 * tolerances.PICTURE


@pytest.mark.parametrize("name", EMBEDDED)
def test_a_step_is_one_pass(ours, name):
    pipe = ours(name)
    before = pipe.totals()["network_passes"]
    pipe(PROMPTS[0], steps=STEPS, seed=0)
    assert pipe.totals()["network_passes"] - before == STEPS


@pytest.mark.parametrize("strength", [0.6, 0.5])  # of 5 steps: 3, or 2 and a half
@pytest.mark.parametrize("name", FLUX)
def test_pictures_to_begin_with(ours, theirs, name, strength, monkeypatch):
    import diffusers
    import torch

    pipe = diffusers.FluxImg2ImgPipeline(**theirs(name).components)
    pipe.set_progress_bar_config(disable=True)
    image = np.random.default_rng(0).uniform(0, 1, (2, 16, 16, 3)).astype(np.float32)

    def our_noise(shape, **_):
        return torch.from_numpy(noise(shape[0], tuple(shape[1:])))

    def no_noise(shape, **_):  # the posterior's mean
        return torch.zeros(shape)

    monkeypatch.setattr(sys.modules[type(pipe).__module__], "randn_tensor", our_noise)
    monkeypatch.setattr(sys.modules["diffusers.models.autoencoders.vae"], "randn_tensor", no_noise)
    arguments = {"image": image, "strength": strength, **({"guidance_scale": 3.0} if name in EMBEDDED else {})}
    with torch.no_grad():
        want = pipe(PROMPTS, num_inference_steps=STEPS, width=16, height=16, output_type="np", **arguments).images
    assert_same(ours(name)(PROMPTS, steps=STEPS, seed=SEED, **arguments).pixels, want)


@pytest.mark.parametrize("name", NAMES)
def test_negative_prompts_are_refused(ours, name):
    rule = "must be left out for this model: a step is one pass, .* true_cfg_scale, .* is not offered"
    with pytest.raises(ValueError, match=f"^negative_prompt {rule}, got 'blue'$"):
        ours(name)(PROMPTS[0], negative_prompt="blue")
    embeds = ours(name).encode_prompt("blue")
    with pytest.raises(ValueError, match=f"^negative_prompt_embeds {rule}"):
        ours(name)(PROMPTS[0], negative_prompt_embeds=embeds)
    with pytest.raises(ValueError, match=r"prompt_embeds must hold .*, got .*guidance"):
        ours(name)(prompt_embeds={**embeds, "guidance": np.ones(1, np.float32)})
    given = ours(name)(PROMPTS[0], steps=1, seed=1, negative_prompt="").pixels  # says nothing
    np.testing.assert_array_equal(given, ours(name)(PROMPTS[0], steps=1, seed=1).pixels)


def test_schnell_takes_no_scale(ours):
    pipe = ours("FluxPipeline-schnell")
    assert "guidance_scale" not in pipe.bundle.info.defaults
    with pytest.raises(ValueError, match=r"guidance_scale must be 1, or left out, for this model, .*, got 3\.5"):
        pipe(PROMPTS[0], guidance_scale=3.5)


@pytest.mark.parametrize("name", NAMES)
def test_embeddings_and_conditioning_are_those_of_a_prompt(ours, name):
    pipe = ours(name)
    given = pipe.conditioning(PROMPTS[0])
    assert given["negative_cond"] is None
    run = {"steps": STEPS, "seed": SEED}
    want = pipe(PROMPTS[0], **run)
    shift = pipe.bundle.info.defaults.get("shift")
    with sf.Engine.load(pipe.bundle, threads=1) as engine:
        samples = engine.sample(1, cond=given["cond"], **run)
        assert engine.table().options.get("shift") == shift
    np.testing.assert_allclose(samples, want.latents, rtol=0, atol=tolerances.PICTURE)
    embeds = pipe(prompt_embeds=pipe.encode_prompt(PROMPTS[0]), **run)
    np.testing.assert_array_equal(embeds.pixels, want.pixels)


@pytest.mark.parametrize("name", EMBEDDED)
def test_a_saved_picture_is_drawn_again_with_its_scale(exported, name, tmp_path):
    command = ["sample", str(exported(name).path), "--steps", "3", "--threads", "1"]
    drawn = runner.invoke(
        app, [*command, "--prompt", PROMPTS[0], "-g", "2.5", "--seed", "4", "-o", str(tmp_path / "cat.png")]
    )
    assert drawn.exit_code == 0, drawn.output
    assert "guidance 2.5" in drawn.output
    again = runner.invoke(
        app,
        [
            "sample",
            command[1],
            "--like",
            str(tmp_path / "cat.png"),
            "--threads",
            "1",
            "-o",
            str(tmp_path / "again.png"),
        ],
    )
    assert again.exit_code == 0, again.output
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "cat.png").read_bytes()
    with Image.open(tmp_path / "cat.png") as picture:
        assert sf.Provenance.from_json(picture.text["stepfuse"]).options["guidance_scale"] == 2.5
        assert picture.text["guidance_scale"] == "2.5"
        assert "CFG scale: 2.5" in picture.text["parameters"]


@pytest.mark.parametrize("name", NAMES)
def test_a_bundle_says_how_it_is_guided(exported, name):
    shown = runner.invoke(app, ["info", str(exported(name).path)], env={"COLUMNS": "200"})
    assert shown.exit_code == 0, shown.output
    rule = "an input of the network, one pass a step" if name in EMBEDDED else "none to choose, one pass a step"
    assert rule in shown.output
    assert ("guidance_scale" in shown.output) == (name in EMBEDDED)


@pytest.mark.parametrize("name", EMBEDDED)
def test_the_service_gives_the_scale_to_the_network(ours, name):
    pytest.importorskip("fastapi", reason="needs the extra serve")
    from stepfuse.server import create_app

    pipe = ours(name)
    with http_service.served(create_app({"tiny": pipe}, warm_up=False)) as service:
        fields = {"num_inference_steps": 3, "seed": 5}
        found = {}
        for scale in (2.0, 6.0):
            [one] = service.generate(PROMPTS[0], guidance_scale=scale, **fields).json["data"]
            assert one["drawn"]["guidance_scale"] == scale
            found[scale] = http_service.levels_of(one["b64_json"])
            want = pipe(PROMPTS[0], guidance_scale=scale, steps=3, seed=5)
            np.testing.assert_array_equal(found[scale], np.asarray(want[0]))
        assert (found[2.0] != found[6.0]).any()
        answer = service.generate(PROMPTS[0], negative_prompt="blue", **fields)
        assert answer.status == 400
        assert "negative_prompt must be left out" in answer.error["message"]


WITHOUT = """
import sys
for name in ("torch", "transformers", "diffusers", "onnx", "onnxscript", "safetensors", "scipy"):
    sys.modules[name] = None  # importing it raises ImportError
from stepfuse.cli import app
app(sys.argv[1:])
"""


@pytest.mark.parametrize("name", NAMES)
def test_the_command_line_samples_without_torch(exported, theirs, name, tmp_path):
    path = tmp_path / "pixels.npy"
    options = ["-n", 2, "--steps", STEPS, "--seed", SEED, "--threads", 1, "-o", path]
    command = [sys.executable, "-c", WITHOUT, "sample", exported(name).path, "--prompt", PROMPTS[0], *options]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    want = diffusers_pixels(theirs(name), PROMPTS[:1] * 2, noise(2, exported(name).info.shape))
    assert_same(np.load(path), want)
