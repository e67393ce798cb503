"""``stepfuse sample --prompt``, as a user types it."""

import handmade
import numpy as np
import pytest
import support
from PIL import Image
from typer.testing import CliRunner

import stepfuse as sf
from stepfuse.cli import app
from stepfuse.cli.options import Machine

runner = CliRunner()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return handmade.write_bundle(tmp_path_factory.mktemp("cli") / "bundle")


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    """A latent model without prompts, whose two conditioning inputs the command line leaves alone."""
    folder = tmp_path_factory.mktemp("classes") / "bundle"
    parts = ("text_encoder.onnx", "tokenizer.json")
    defaults = {"sampler": "ddim", "steps": 4, "guidance_scale": 1.0}
    return handmade.write_bundle(folder, pipeline={"prompts": ()}, without=parts, defaults=defaults)


def run(*arguments):
    return runner.invoke(app, [str(argument) for argument in arguments])


def test_a_prompt_gives_the_picture_that_the_api_gives(bundle, tmp_path):
    path = tmp_path / "deep" / "cat.png"
    options = ["--negative-prompt", "blue", "--width", 12, "--height", 16, "--steps", 3, "-g", 5, "--seed", 4]
    result = run("sample", bundle.path, "--prompt", "a red cat", *options, "--sampler", "dpmpp_2m", "-o", path)
    assert result.exit_code == 0, result.output
    assert "handmade: dpmpp_2m, 3 steps, guidance 5, seed 4" in result.output
    assert "1 of 12 x 16 pixels in" in result.output
    with sf.TextToImage.load(bundle) as pipe:
        settings = {"negative_prompt": "blue", "width": 12, "height": 16, "steps": 3, "guidance_scale": 5.0, "seed": 4}
        want = pipe("a red cat", sampler="dpmpp_2m", **settings)[0]
    with Image.open(path) as picture:
        np.testing.assert_array_equal(np.asarray(picture), np.asarray(want))
        assert picture.text["prompt"] == "a red cat"
        assert picture.text["seed"] == "4"


def test_several_pictures_are_files_named_by_their_seeds(bundle, tmp_path):
    result = run("sample", bundle.path, "--prompt", "a cat", "-n", 3, "--seed", 7, "-o", tmp_path / "cat.png")
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cat-7.png", "cat-8.png", "cat-9.png"]
    assert result.output.count("written to") == 3
    path = tmp_path / "cats.npy"
    assert run("sample", bundle.path, "--prompt", "a cat", "-n", 3, "--seed", 7, "-o", path).exit_code == 0
    pixels = np.load(path)
    assert pixels.shape == (3, 8, 8, 3)
    with Image.open(tmp_path / "cat-8.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), (pixels[1] * 255).round().astype(np.uint8))


def test_a_picture_and_a_mask_to_begin_with(bundle, tmp_path):
    rng = np.random.default_rng(0)
    begin = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    mask = Image.fromarray(np.repeat(np.uint8([[0] * 4 + [255] * 4]), 8, axis=0))
    begin.save(tmp_path / "begin.png")
    mask.save(tmp_path / "mask.png")
    files = ["--image", tmp_path / "begin.png", "--mask", tmp_path / "mask.png"]
    path = tmp_path / "picture.npy"
    result = run("sample", bundle.path, "--prompt", "a cat", *files, "--strength", 0.5, "-o", path)
    assert result.exit_code == 0, result.output
    with sf.TextToImage.load(bundle) as pipe:
        want = pipe("a cat", image=begin, mask=mask, strength=0.5, seed=0)
    np.testing.assert_allclose(np.load(path), want.pixels, rtol=0, atol=1e-6)


def test_a_long_prompt_is_reported_in_a_line(bundle, tmp_path):
    result = run("sample", bundle.path, "--prompt", "a red cat dog in the rain", "-o", tmp_path / "cat.png")
    assert result.exit_code == 0, result.output
    assert "stepfuse: a prompt is cut after 6 tokens: 'in the rain' is not read\n" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "handmade draws what a prompt says: give --prompt"),
        (["--prompt", "a", "--cond", "1"], "--cond is for models with classes, handmade takes --prompt"),
        (["--prompt", "a", "--width", "10"], "--width must be a multiple of 4 pixels"),
        (["--prompt", "a", "-n", "0"], "--number must be at least 1, got 0"),
        (["--prompt", "a", "--image", "nowhere.png"], "nowhere.png"),
        (["--prompt", "a", "--strength", "0.5"], "--strength needs --image"),
        (
            ["--prompt", "a", "--device", "cuda", "--threads", "2"],
            "--threads must be left out for a pipeline on 'cuda'",
        ),
        (
            ["--prompt", "a", "--device", "cuda", "--backend", "openvino"],
            "--backend must be one of onnxruntime, onnxruntime-tensorrt, tensorrt, got 'openvino'",
        ),
        (["--prompt", "a", "--backend", "tensorrt"], "--backend must be one of"),
        (
            ["--prompt", "a", "--device", "tpu"],
            "--device must be 'cpu', 'cuda' or 'cuda:N', got 'tpu'",
        ),
    ],
)
def test_bad_input_is_reported_in_a_line(bundle, tmp_path, arguments, message):
    path = tmp_path / "none.png"
    result = run("sample", bundle.path, "-o", path, *arguments)
    assert result.exit_code == (1 if "nowhere.png" in message else 2)
    assert message in result.output
    assert "Traceback" not in result.output
    assert not path.exists()


@pytest.mark.parametrize(("option", "value"), [("--prompt", "a"), ("--negative-prompt", "a"), ("--width", "8")])
def test_a_bundle_without_prompts_says_so(tmp_path, option, value):
    bundle = support.write_tiny_bundle(tmp_path / "tiny")
    result = run("sample", bundle.path, option, value)
    assert result.exit_code == 2
    assert f"{option} needs a pipeline with prompts, tiny has none" in result.output


def test_latents_without_prompts_are_decoded(classes, tmp_path):
    path, raw = tmp_path / "grid.png", tmp_path / "raw.npy"
    assert run("sample", classes.path, "-n", 2, "-o", raw).exit_code == 0
    latents = np.load(raw)
    assert latents.shape == (2, *handmade.SHAPE)
    result = run("sample", classes.path, "-n", 2, "-o", path)
    assert result.exit_code == 0, result.output
    from stepfuse.cli.latents import pictures_of

    pictures, data_range = pictures_of(classes, latents, 1)
    assert data_range == (-1.0, 1.0)
    want = handmade.decode(latents).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(np.clip((pictures + 1) / 2, 0, 1), want, rtol=0, atol=1e-6)
    with Image.open(path) as grid:
        assert "ddim, 4 steps" in grid.text["Description"]


def test_latents_without_prompts_begin_with_an_encoded_picture(classes, tmp_path):
    levels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(levels).save(tmp_path / "begin.png")
    Image.fromarray(np.repeat(np.uint8([[0] * 4 + [255] * 4]), 8, axis=0)).save(tmp_path / "mask.png")
    path = tmp_path / "raw.npy"
    files = ["--image", tmp_path / "begin.png", "--mask", tmp_path / "mask.png"]
    result = run("sample", classes.path, "-n", 1, *files, "-o", path)
    assert result.exit_code == 0, result.output
    kept = handmade.encode(np.float32(levels)[None] / 255)
    np.testing.assert_allclose(np.load(path)[..., :2], kept[..., :2], rtol=0, atol=1e-5)
    assert np.abs(np.load(path)[..., 2:] - kept[..., 2:]).max() > 0.1


def test_info_says_what_a_pipeline_takes(bundle, tmp_path):
    result = run("info", bundle.path)
    assert result.exit_code == 0, result.output
    for fact in ("HandMade", "8 x 8 pixels, or any multiples of 4", "prompt as input_ids", "6 tokens, tokenizer.json"):
        assert fact in result.output
    fixed = handmade.write_bundle(tmp_path / "fixed", pipeline={"fixed_size": True})
    assert "8 x 8 pixels alone" in run("info", fixed.path).output
    bounded = handmade.write_bundle(tmp_path / "bounded", pipeline={"max_size": 16})
    assert "multiples of 4 up to 16" in run("info", bounded.path).output


@pytest.mark.parametrize(
    ("options", "providers"),
    [
        pytest.param([], ["CUDAExecutionProvider"], id="default"),
        pytest.param(
            ["--backend", "onnxruntime-tensorrt"],
            ["TensorrtExecutionProvider", "CUDAExecutionProvider"],
            id="onnxruntime-tensorrt",
        ),
    ],
)
def test_pictures_are_drawn_on_a_gpu(onnxruntime_gpu, bundle, tmp_path, options, providers):
    path = tmp_path / "cat.npy"
    arguments = ["--prompt", "a red cat", "--seed", "5", "--device", "cuda", "--max-rows", "4"]
    result = run("sample", bundle.path, "-o", path, *arguments, *options)
    assert result.exit_code == 0, result.output
    assert [list(one) for one in onnxruntime_gpu.sessions] == [providers]
    with sf.TextToImage.load(bundle) as pipe:
        np.testing.assert_allclose(np.load(path), pipe("a red cat", seed=5).pixels, rtol=0, atol=2e-6)


def test_the_machine_names_the_gpu_s_back_end():
    machine = Machine(device="cuda:1", backend="tensorrt")
    assert machine.arguments["device"] == sf.Cuda(1, backend="tensorrt")
    assert machine.arguments["backend"] == "onnxruntime"
    assert Machine(device="cuda").arguments["device"] == "cuda"
    assert Machine(backend="openvino").arguments["backend"] == "openvino"


@pytest.mark.parametrize("ranges", [["0,0.7"], ["controlnet=0,0.7"]])
def test_a_picture_that_a_controlnet_follows(exported, tmp_path, ranges):
    pytest.importorskip("diffusers")
    bundle = exported("StableDiffusionControlNetPipeline")
    edges = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    edges.save(tmp_path / "edges.png")
    path = tmp_path / "cat.png"
    options = ["--steps", 3, "--seed", 4, "--threads", 1, "--control", f"controlnet={tmp_path / 'edges.png'}:0.8"]
    options += [text for one in ranges for text in ("--control-range", one)]
    result = run("sample", bundle.path, "--prompt", "a cat", *options, "-o", path)
    assert result.exit_code == 0, result.output
    settings = {"steps": 3, "seed": 4, "control": {"controlnet": edges}, "control_scale": 0.8}
    with sf.TextToImage.load(bundle, threads=1) as pipe:
        want = pipe("a cat", control_range=(0, 0.7), **settings)
    with Image.open(path) as picture:
        np.testing.assert_array_equal(np.asarray(picture), np.asarray(want[0]))
        assert sf.Provenance.from_json(picture.text["stepfuse"]).control == want.provenance[0].control


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--control", "edges.png"], "--control must be NAME=FILE or NAME=FILE:SCALE, got 'edges.png'"),
        (["--control", "a=x", "--control", "a=y"], "--control a must be given once, got 'a=y' too"),
        (["--control-range", "0,1"], "--control-range needs --control NAME=FILE, got none"),
        (
            ["--control", "a=x", "--control-range", "0.5"],
            "--control-range must be BEGIN,END or NAME=BEGIN,END, got '0.5'",
        ),
        (["--control", "a=x", *["--control-range", "0,1"] * 2], "--control-range must be given once for each"),
        (["--control", "a=begin.png"], "control needs a bundle with ControlNets, which this one has not"),
    ],
    ids=["no name", "twice", "no picture", "one end", "two ranges", "no ControlNet"],
)
def test_what_is_no_control_is_refused(bundle, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("begin.png")
    result = run("sample", bundle.path, "--prompt", "a cat", *options)
    assert result.exit_code != 0
    assert message in " ".join(result.stderr.split())


def test_a_model_without_prompts_has_no_controls(classes, tmp_path):
    result = run("sample", classes.path, "--control", "a=x", "-o", tmp_path / "x.png")
    assert result.exit_code != 0
    assert "--control needs a pipeline with prompts" in " ".join(result.stderr.split())
