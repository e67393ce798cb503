"""``stepfuse sample --like`` and ``stepfuse info`` of a picture, as a user types them."""

import json
import shutil

import handmade
import numpy as np
import pytest
import support
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from typer.testing import CliRunner

import stepfuse as sf
from stepfuse.cli import app

runner = CliRunner()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return support.write_tiny_bundle(tmp_path_factory.mktemp("like") / "tiny")


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    return handmade.write_bundle(tmp_path_factory.mktemp("like") / "bundle")


def run(*arguments):
    return runner.invoke(app, [str(argument) for argument in arguments])


def same(model, picture, again, *arguments):
    """Draws a picture again, and says nothing but what it has drawn."""
    result = run("sample", model.path, "--like", picture, "-f", "-o", again, *arguments)
    assert result.exit_code == 0, result.output
    assert "stepfuse:" not in result.output
    return picture.read_bytes() == again.read_bytes()


@pytest.mark.parametrize(
    "options",
    [
        ["-n", 5, "--columns", 3],
        ["-n", 2, "--cond", 2, "--cond", "boot", "--seed", 2**64 - 2, "-g", 2.5],
        ["-n", 1, "--cond", support.NULL, "--sampler", "dpmpp_2m", "--sampler-option", "karras=true"],
        ["-n", 1, "--sampler-option", "timesteps=900,500,100", "--eta", 0.5, "--max-rows", 2],
        ["-n", 1, "--sampler-option", "dynamic_threshold=0.9,2", "--sampler-option", "guidance_rescale=0.5"],
        ["-n", 1, "--cond", 2, "-g", 2.5, "--sampler-option", "apg=0,2", "--sampler-option", "apg_form=paper"],
        ["-n", 1, "--cond", 2, "-g", 2.5, "--sampler-option", "cfg_zero_star=true", "--sampler-option", "zero_init=1"],
        ["-n", 3, "--sampler", "euler_ancestral", "--sampler-option", "guidance_interval=0.2,0.8"],
        *(["-n", 1, "--sampler", sampler] for sampler in ("deis", "heun", "plms", "unipc")),
        ["-n", 1, "--sampler", "dpmpp_2m_sde", "--eta", 0.5],
    ],
    ids=[
        "grid",
        "classes",
        "null-class",
        "timesteps",
        "adaptive",
        "apg",
        "zero-star",
        "stochastic",
        "deis",
        "heun",
        "plms",
        "unipc",
        "sde",
    ],
)
def test_a_grid_is_drawn_again_byte_for_byte(bundle, tmp_path, options):
    first = tmp_path / "first.png"
    steps = [] if any("timesteps" in str(one) for one in options) else ["--steps", 4]
    assert run("sample", bundle.path, "-o", first, *steps, *options).exit_code == 0
    assert same(bundle, first, tmp_path / "again.png")


def test_a_picture_says_that_openvino_computed_it(bundle, tmp_path, monkeypatch):
    pytest.importorskip("openvino")
    monkeypatch.setenv("HOME", str(tmp_path))
    first, library = tmp_path / "first.png", ["--backend", "openvino"]
    assert run("sample", bundle.path, "-n", 1, "--steps", 3, "-o", first, *library).exit_code == 0
    assert same(bundle, first, tmp_path / "again.png", *library)
    with Image.open(first) as picture:
        assert sf.Provenance.from_json(picture.text["stepfuse"]).model.computed_by == "openvino float32"
    output = run("sample", bundle.path, "--like", first, "-o", tmp_path / "other.png").output
    said = (
        "was drawn with its network in openvino float32, and now in onnxruntime float32: see --backend and --precision"
    )
    assert said in " ".join(output.split())


def test_the_null_class_is_no_class(bundle, tmp_path):
    path = tmp_path / "null.png"
    result = run("sample", bundle.path, "-n", 1, "--cond", support.NULL, "--steps", 2, "-g", 3, "-o", path)
    assert "tiny: unconditional, ddim, 2 steps, seed 0" in result.output
    with Image.open(path) as picture:
        assert picture.text["Description"] == "tiny: unconditional, ddim, 2 steps, seed 0"


def test_a_picture_that_began_as_another_needs_that(bundle, tmp_path):
    _, height, width = support.SHAPE
    levels = np.linspace(0, 255, height * width).astype(np.uint8).reshape(height, width)
    Image.fromarray(levels).save(tmp_path / "image.png")
    Image.fromarray(255 - levels).save(tmp_path / "other.png")
    first, again = tmp_path / "first.png", tmp_path / "again.png"
    image = ["--image", tmp_path / "image.png"]
    assert run("sample", bundle.path, "-n", 2, "--strength", 0.5, "--steps", 4, *image, "-o", first).exit_code == 0
    assert same(bundle, first, again, *image)
    result = run("sample", bundle.path, "--like", first, "-o", tmp_path / "none.png")
    assert result.exit_code == 2
    assert "was drawn with an image, sha256 " in result.output
    assert "give it with --image" in result.output
    assert not (tmp_path / "none.png").exists()
    result = run("sample", bundle.path, "--like", first, "--image", tmp_path / "other.png", "-f", "-o", again)
    assert result.exit_code == 0
    assert f"stepfuse: --image is another than the one that {first} was drawn with" in result.output


def test_pictures_of_the_api_are_drawn_again(bundle, tmp_path):
    with sf.Engine.load(bundle) as engine:
        drawn = sf.sample_pictures(engine, 2, cond="bag", seed=7, steps=4)
        [first, second] = drawn.save(tmp_path / "bag.png")
        stopped = sf.sample_pictures(engine, cond=1, seed=7, steps=4, callback=lambda step, *_: step < 3)
        [third] = stopped.save(tmp_path / "stopped.png")
        [custom] = sf.sample_pictures(engine, cond=1, table=engine.table(steps=4)[1:]).save(tmp_path / "custom.png")
        noise = np.zeros((1, *support.SHAPE), np.float32)
        [begun] = sf.sample_pictures(engine, cond=1, steps=2, noise=noise).save(tmp_path / "noise.png")
    for picture in (first, second, third):
        assert same(bundle, picture, tmp_path / "again.png")
    for picture, what in ((custom, "with a table of one's own"), (begun, "from noise that was given as an array")):
        result = run("sample", bundle.path, "--like", picture, "-o", tmp_path / "none.png")
        assert result.exit_code == 2
        assert f"was drawn {what}, which --like does not have" in result.output


@pytest.mark.parametrize("number", [1, 3])
def test_a_picture_of_a_prompt_is_drawn_again_byte_for_byte(prompts, tmp_path, number):
    options = ["--negative-prompt", "blue", "--width", 12, "--height", 16, "--steps", 3, "-g", 5, "--seed", 4]
    path = tmp_path / "cat.png"
    result = run("sample", prompts.path, "--prompt", "a red cat", "-n", number, *options, "-o", path)
    assert result.exit_code == 0, result.output
    for one in sorted(tmp_path.iterdir()):
        assert same(prompts, one, tmp_path / "again.png")
        (tmp_path / "again.png").unlink()


def test_a_run_that_ended_early_is_drawn_again_and_what_went_on_from_latents_is_not(prompts, tmp_path):
    call = {"seed": 7, "steps": 4, "guidance_scale": 2.0}
    with sf.TextToImage.load(prompts) as pipe:
        half = pipe("a red cat", denoising_end=0.5, **call)
        [first] = half.save(tmp_path / "half.png")
        rest = pipe("a red cat", denoising_start=0.5, latents=half.latents, **call)
        [second] = rest.save(tmp_path / "rest.png")
    assert same(prompts, first, tmp_path / "again.png")
    result = run("sample", prompts.path, "--like", second, "-o", tmp_path / "none.png")
    assert result.exit_code == 2
    assert "was drawn on from latents, which --like does not have" in result.output


def test_options_change_what_is_drawn_again(prompts, tmp_path):
    first, again, want = tmp_path / "first.png", tmp_path / "again.png", tmp_path / "want.png"
    common = ["--prompt", "a red cat", "--width", 12]
    karras = ["--sampler", "dpmpp_2m", "--sampler-option", "karras=true"]
    assert run("sample", prompts.path, *common, *karras, "--steps", 4, "--seed", 3, "-o", first).exit_code == 0
    for changes, all_of_them in (
        (["--seed", 4], [*common, *karras, "--steps", 4, "--seed", 4]),
        (["--steps", 5, "-g", 2], [*common, *karras, "--steps", 5, "--seed", 3, "-g", 2]),
        (["--sampler", "ddim"], [*common, "--sampler", "ddim", "--steps", 4, "--seed", 3]),
        (["--prompt", "a dog"], ["--prompt", "a dog", "--width", 12, *karras, "--steps", 4, "--seed", 3]),
    ):
        assert run("sample", prompts.path, "--like", first, *changes, "-o", again, "-f").exit_code == 0
        assert run("sample", prompts.path, *all_of_them, "-o", want, "-f").exit_code == 0
        assert again.read_bytes() == want.read_bytes()


def _changed(path, **entries):
    """A picture that says something else of how it was drawn."""
    info = PngInfo()
    with Image.open(path) as picture:
        text = json.loads(picture.text["stepfuse"])
        info.add_text("stepfuse", json.dumps({**text, **entries}))
        picture.save(path, pnginfo=info)
    return path


def test_another_version_or_model_is_a_warning(bundle, tmp_path):
    first = tmp_path / "first.png"
    assert run("sample", bundle.path, "-n", 1, "--steps", 2, "-o", first).exit_code == 0
    files = {"denoiser.onnx": "0123456789" * 6 + "0123", "denoiser.onnx.data": "ab" * 32}
    _changed(first, version="0.0.9", model={"name": "tiny", "files": files}, table="00" * 32)
    result = run("sample", bundle.path, "--like", first, "-o", tmp_path / "again.png")
    assert result.exit_code == 0, result.output
    digest = bundle.files["denoiser.onnx"]["sha256"][:10]
    assert f"was drawn by stepfuse 0.0.9, this is {sf.__version__}\n" in result.output
    differences = f"denoiser.onnx is {digest}, was 0123456789, denoiser.onnx.data is not there, was ababababab"
    assert f"was drawn with another model: {differences}\n" in result.output
    assert "was drawn with other coefficients of ddim" in result.output


def test_what_cannot_be_drawn_again_is_refused(bundle, prompts, tmp_path):
    first, bare, path = tmp_path / "first.png", tmp_path / "bare.png", tmp_path / "none.png"
    assert run("sample", bundle.path, "-n", 1, "--steps", 2, "-o", first).exit_code == 0
    Image.new("L", (4, 4)).save(bare)
    hostile = shutil.copy(first, tmp_path / "hostile.png")
    _changed(hostile, sampler="\x1b[31mddim")
    for arguments, message in (
        ([bundle.path, "--like", bare], f"{bare} does not say how it was made: --like needs a picture that stepfuse"),
        ([bundle.path, "--like", tmp_path / "nowhere.png"], "nowhere.png"),
        (["--like", first], f"{first} was drawn with 'tiny': give the MODEL that draws it again"),
        ([prompts.path, "--like", first], f"{first} was drawn by a model of classes, handmade takes prompts"),
        ([bundle.path, "--like", hostile], r"got '\x1b[31mddim'"),
    ):
        result = run("sample", *arguments, "-o", path)
        assert result.exit_code == (1 if message == "nowhere.png" else 2), result.output
        assert message in result.output
        assert "\x1b" not in result.output
        assert not path.exists()


def test_a_picture_of_an_embedded_model_names_it(tmp_path):
    first, again = tmp_path / "first.png", tmp_path / "again.png"
    assert run("sample", "fashion-8step", "-n", 1, "--steps", 1, "-o", first).exit_code == 0
    assert run("sample", "--like", first, "-o", again).exit_code == 0
    assert first.read_bytes() == again.read_bytes()


def test_a_picture_of_a_web_interface_is_drawn_with_its_settings(prompts, tmp_path):
    path = tmp_path / "web.png"
    info = PngInfo()
    settings = "Steps: 3, Sampler: DPM++ 2M Karras, CFG scale: 5, Seed: 4, Size: 12x16"
    info.add_text("parameters", f"a red cat\nNegative prompt: blue\n{settings}")
    Image.new("L", (4, 4)).save(path, pnginfo=info)
    result = run("sample", prompts.path, "--like", path, "-o", tmp_path / "again.png")
    assert result.exit_code == 0, result.output
    assert "is of another program, whose noise is another: the picture will be another, too" in result.output
    karras = ["--sampler", "dpmpp_2m", "--sampler-option", "karras=true"]
    size = ["--width", 12, "--height", 16, "--steps", 3, "-g", 5, "--seed", 4]
    given = ["--prompt", "a red cat", "--negative-prompt", "blue", *karras, *size]
    assert run("sample", prompts.path, *given, "-o", tmp_path / "want.png").exit_code == 0
    assert (tmp_path / "want.png").read_bytes() == (tmp_path / "again.png").read_bytes()
    assert "DPM++ 2M Karras" in run("info", path).output
    assert json.loads(run("info", path, "--json").output)["parameters"]["Size"] == "12x16"
    info = PngInfo()
    info.add_text("parameters", "a red cat\nSteps: 3, Sampler: Restart, CFG scale: x, Seed: 4")
    Image.new("L", (4, 4)).save(path, pnginfo=info)
    result = run("sample", prompts.path, "--like", path)
    assert "it lacks width, height, sampler, guidance scale: its settings are" in result.output


def of_web_interface(path, prompt, *, negative="", more=""):
    info = PngInfo()
    settings = f"Steps: 3, Sampler: DDIM, CFG scale: 5, Seed: 4, Size: 12x16{more}"
    info.add_text("parameters", f"{prompt}\nNegative prompt: {negative}\n{settings}")
    Image.new("L", (4, 4)).save(path, pnginfo=info)
    return path


def test_brackets_of_a_web_interface_s_prompt_are_what_they_mean_there(prompts, tmp_path):
    web, again, want = tmp_path / "web.png", tmp_path / "again.png", tmp_path / "want.png"
    of_web_interface(web, r"cat \(red\)", negative=r"\[dog\]", more=", Clip skip: 2, Version: v1.9")
    result = run("sample", prompts.path, "--like", web, "-o", again)
    assert result.exit_code == 0, result.output
    assert "is another, and whose Clip skip is not read: the picture" in " ".join(result.output.split())
    given = ["--prompt", "cat (red)", "--negative-prompt", "[dog]", "--sampler", "ddim", "--steps", 3, "-g", 5]
    drawn = run("sample", prompts.path, *given, "--seed", 4, "--width", 12, "--height", 16, "-o", want)
    assert drawn.exit_code == 0, drawn.output
    assert again.read_bytes() == want.read_bytes()
    of_web_interface(web, "(cat:1.3)")
    result = run("sample", prompts.path, "--like", web, "-o", again, "--force")
    assert result.exit_code == 2
    assert "prompt must have words without weights and editing, which are not here, got '(cat:1.3)'" in result.output
    assert run("sample", prompts.path, "--like", web, "--prompt", "cat", "-o", again, "--force").exit_code == 0


def test_loras_of_a_web_interface_s_prompt_are_asked_for(prompts, tmp_path):
    web = of_web_interface(tmp_path / "web.png", "cat <lora:fog:0.5>")
    result = run("sample", prompts.path, "--like", web, "-o", tmp_path / "again.png")
    assert result.exit_code == 2
    assert "was drawn with the LoRA fog: give its file with --lora fog=FILE" in " ".join(result.output.split())
    assert run("sample", prompts.path, "--like", web, "--prompt", "cat", "-o", tmp_path / "a.png").exit_code == 0


def test_info_says_how_a_picture_was_drawn(bundle, tmp_path):
    path = tmp_path / "first.png"
    assert run("sample", bundle.path, "-n", 2, "--steps", 2, "--cond", "bag", "-o", path).exit_code == 0
    output = " ".join(run("info", path).output.split())
    digest = bundle.files["denoiser.onnx"]["sha256"]
    for fact in (
        "tiny: bag, ddim, 2 steps",
        f"sha256 of denoiser.onnx {digest[:20]}",
        "spacing leading",
        "forwards done 2",
    ):
        assert fact in output
    found = json.loads(run("info", path, "--json").output)
    with Image.open(path) as picture:
        assert found["stepfuse"] == json.loads(picture.text["stepfuse"])
    assert json.loads(run("info", bundle.path, "--json").output)["name"] == "tiny"
    Image.new("L", (4, 4)).save(path)
    result = run("info", path)
    assert result.exit_code == 2
    assert "does not say how it was made: it has neither an entry of stepfuse nor parameters" in result.output


def test_info_shows_no_control_of_a_picture(bundle, tmp_path):
    path = tmp_path / "first.png"
    assert run("sample", bundle.path, "-n", 1, "--steps", 2, "-o", path).exit_code == 0
    _changed(path, sampler="\x1b[31mddim[/bold]", options={"\x1b[2J": "[red]x"}, cond=["\u202ebag"])
    for arguments in ([], ["--json"]):
        result = run("info", path, *arguments)
        assert result.exit_code == 0, result.output
        assert not {"\x1b", "\u202e"} & set(result.output)
    assert "[red]x" in run("info", path).output
