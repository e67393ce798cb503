"""Where commands write: tried before anything is drawn, nothing replaced without --force, patterns, standard output."""

import io
import json
import os

import handmade
import numpy as np
import pytest
import support
from PIL import Image
from typer.testing import CliRunner

import stepfuse as sf
import stepfuse.export
from stepfuse.cli import app
from stepfuse.cli.file_names import safe_name

runner = CliRunner()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return support.write_tiny_bundle(tmp_path_factory.mktemp("files") / "tiny")


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return handmade.write_bundle(tmp_path_factory.mktemp("files") / "pipeline")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def undrawn(monkeypatch):
    """Fails where anything is drawn."""

    def draw(*_, **__):
        pytest.fail("drawn before its place was tried")

    for kind in (sf.Engine, sf.TextToImage):
        monkeypatch.setattr(kind, "load", draw)


def run(*arguments, **settings):
    return runner.invoke(app, [str(one) for one in arguments], **settings)


def commands(bundle, pipeline):
    return {
        "sample": ["sample", bundle.path, "--steps", 2, "-n", 2, "-o", "taken.png"],
        "prompt": ["sample", pipeline.path, "--prompt", "a", "-o", "taken.png"],
        "interpolate": ["interpolate", bundle.path, "--steps", 2, "-n", 2, "-o", "taken.png"],
        "pattern": ["sample", bundle.path, "--steps", 2, "-n", 2, "-o", "t{seed}en.png"],
    }


@pytest.mark.parametrize("name", ["sample", "prompt", "interpolate"])
def test_a_file_that_is_there_is_kept_unless_forced(bundle, pipeline, here, undrawn, name, monkeypatch):
    (here / "taken.png").write_text("mine")
    arguments = commands(bundle, pipeline)[name]
    result = run(*arguments)
    assert result.exit_code == 1
    assert "stepfuse: taken.png exists already: give --force to replace it" in result.output
    assert (here / "taken.png").read_text() == "mine"
    monkeypatch.undo()
    monkeypatch.chdir(here)
    result = run(*arguments, "--force")
    assert result.exit_code == 0, result.output
    assert Image.open(here / "taken.png").format == "PNG"


def test_one_file_of_several_that_is_there_is_enough(bundle, pipeline, here, undrawn):
    (here / "cat-1.png").touch()
    result = run("sample", pipeline.path, "--prompt", "a", "-n", 3, "-o", "cat.png")
    assert "cat-1.png exists already" in result.output
    (here / "1.png").touch()
    result = run("sample", bundle.path, "-n", 3, "-o", "{seed}.png")
    assert (
        "1.png exists already: give --force to replace it, or --skip-existing to draw what is missing" in result.output
    )


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("file/x.png", "file is a file: name a folder"),
        ("folder.png", "folder.png is a folder: name a file in it"),
        ("folder.png/", "folder.png/ is a folder: name a file in it"),
        ("/proc/x.png", "/proc/x.png: "),
        ("a" * 252 + ".png", "File name too long"),
        ("a" * 256 + "/x.png", "File name too long"),
        ("new/" + "a" * 256 + "/x.png", "File name too long"),
        ("", "--output must name a file, got ''"),
        ("picture", "--output must end in .png, .jpg, .jpeg, .webp or .npy, got 'picture'"),
        ("x{sede}.png", "got {sede} (did you mean seed?)"),
        ("x{.png", "--output must close its braces, got 'x{.png'"),
        ("x{index:zz}.png", "--output must format {index} such as {index:04}"),
        ("x{seed.real}.png", "--output must have fields of {index}"),
        ("x{model}.png", "--output must name each sample, by {index} or {seed}: xtiny.png comes twice"),
    ],
)
def test_a_place_that_cannot_be_written_is_found_before_drawing(bundle, here, undrawn, output, message):
    (here / "file").touch()
    (here / "folder.png").mkdir()
    result = run("sample", bundle.path, "-n", 2, "-o", output)
    assert result.exit_code in (1, 2)
    assert message in result.output
    assert "partial" not in result.output
    assert "Errno" not in result.output
    assert sorted(path.name for path in here.iterdir()) == ["file", "folder.png"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_found_before_drawing(bundle, here, undrawn):
    here.chmod(0o555)
    result = run("sample", bundle.path, "-o", "x.png")
    assert result.exit_code == 1
    assert "Permission denied" in result.output


@pytest.mark.parametrize("command", ["lora", "quantize", "export"])
def test_a_bundle_that_is_there_is_kept_unless_forced(bundle, here, monkeypatch, command):
    for call in ("fuse_lora", "quantize", "from_diffusers"):
        monkeypatch.setitem(vars(stepfuse.export), call, lambda *_, **__: pytest.fail("begun"))
    (here / "out").mkdir()
    more = ["x.safetensors"] if command == "lora" else []
    result = run(command, bundle.path, *more, "-o", "out")
    assert result.exit_code == 1
    assert "out exists already: give --force to replace it" in result.output
    result = run(command, bundle.path, *more, "-o", "out", "--force")
    assert "out has no manifest.json: only a bundle is replaced" in result.output


def test_a_report_is_kept_unless_forced_and_gone_on_with(here, monkeypatch):
    ran = []

    def analyze(*_, only, **__):
        ran.append(only)
        return []

    monkeypatch.setattr("stepfuse.analysis.report.runner.analyze", analyze)
    (here / "report").mkdir()
    (here / "report" / "paths.json").touch()
    result = run("analyze", "fashion")
    assert result.exit_code == 1
    assert "report holds paths already: give --force to replace them, or --skip-existing" in result.output
    assert run("analyze", "fashion", "--only", "paths", "--only", "guidance", "--skip-existing").exit_code == 0
    assert run("analyze", "fashion", "--only", "paths", "--force").exit_code == 0
    assert run("analyze", "fashion", "--only", "frontier").exit_code == 0
    assert ran == [["guidance"], ["paths"], ["frontier"]]


def test_a_pattern_names_a_file_of_each_sample(bundle, here):
    result = run(
        "sample", bundle.path, "--steps", 2, "-n", 3, "--cond", 1, "--seed", 7, "-o", "out/{index:03}-{seed}-{cond}.npy"
    )
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in (here / "out").iterdir()) == ["000-7-bag.npy", "001-8-bag.npy", "002-9-bag.npy"]
    with sf.Engine.load(bundle.path) as engine:
        want = engine.sample(3, cond=1, steps=2, seed=7)
    for index, one in enumerate(sorted((here / "out").iterdir())):
        np.testing.assert_array_equal(np.load(one), want[index])


def test_a_sample_as_a_picture_has_its_own_size(bundle, here):
    assert run("sample", bundle.path, "--steps", 2, "-n", 2, "-o", "{seed}.png").exit_code == 0
    with Image.open("1.png") as picture:
        assert picture.size == (support.SHAPE[2], support.SHAPE[1])
        assert "seed 1" in picture.text["Description"]


def test_prompts_come_from_a_file_or_standard_input(pipeline, here):
    (here / "prompts.txt").write_text("a red cat\n\n  a dog\n", encoding="utf-8")
    options = ["sample", pipeline.path, "--steps", 2, "-n", 2, "--seed", 5]
    result = run(*options, "--prompt-file", "prompts.txt", "-o", "{index}-{prompt}-{seed}.png")
    assert result.exit_code == 0, result.output
    names = ["0-a-red-cat-5.png", "1-a-red-cat-6.png", "2-a-dog-7.png", "3-a-dog-8.png", "prompts.txt"]
    assert sorted(path.name for path in here.iterdir()) == names
    result = run(*options, "--prompt-file", "-", "-o", "all.npy", input="a red cat\na dog\n")
    assert result.exit_code == 0, result.output
    with sf.TextToImage.load(pipeline) as pipe:
        want = pipe(["a red cat", "a dog"], num_images=2, steps=2, seed=5).pixels
    np.testing.assert_allclose(np.load("all.npy"), want, rtol=0, atol=1e-6)
    for name, pixels in zip(names, want, strict=False):
        with Image.open(name) as picture:
            np.testing.assert_array_equal(np.asarray(picture), (pixels * 255).round().astype(np.uint8))


@pytest.mark.parametrize(
    ("raw", "message"), [(b"\n \n", "holds none"), (b"\xff\xfe", "--prompt-file must be UTF-8"), (None, "No such file")]
)
def test_a_file_without_prompts_is_refused(pipeline, here, undrawn, raw, message):
    if raw is not None:
        (here / "prompts.txt").write_bytes(raw)
    result = run("sample", pipeline.path, "--prompt-file", "prompts.txt")
    assert result.exit_code in (1, 2)
    assert message in result.output


def test_a_run_that_was_ended_goes_on_where_it_was(pipeline, here):
    options = ["sample", pipeline.path, "--prompt", "a cat", "--steps", 2, "-n", 4]
    assert run(*options, "-o", "all/{seed}.png").exit_code == 0
    assert run(*options, "-o", "part/{seed}.png").exit_code == 0
    (here / "part" / "1.png").unlink()
    (here / "part" / "3.png").write_text("kept")
    result = run(*options, "-o", "part/{seed}.png", "--skip-existing")
    assert result.exit_code == 0, result.output
    assert "3 of 4 were there already" in result.output
    with Image.open("part/1.png") as again, Image.open("all/1.png") as first:
        np.testing.assert_array_equal(np.asarray(again), np.asarray(first))
    assert (here / "part" / "3.png").read_text() == "kept"
    assert "4 of 4 were there already" in run(*options, "-o", "all/{seed}.png", "--skip-existing").output
    assert "give one of them" in run(*options, "--skip-existing", "--force").output


@pytest.mark.parametrize("format", [None, "png", "npy"])
def test_standard_output_carries_the_samples_alone(bundle, here, format):
    result = run("sample", bundle.path, "--steps", 2, "-n", 2, "-o", "-", *(["--format", format] if format else []))
    assert result.exit_code == 0, result.stderr
    assert "ddim, 2 steps, seed 0" in result.stderr
    raw = io.BytesIO(result.stdout_bytes)
    if format == "npy":
        assert np.load(raw).shape == (2, *support.SHAPE)
    else:
        assert Image.open(raw).format == "PNG"
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "-", "--json"], "--json must be left out with --output -"),
        (["-o", "-", "--format", "gif"], "--format must be png, jpg, jpeg, webp or npy, got 'gif'"),
        (["-o", "x.png", "--format", "png"], "--format is for --output - alone"),
        (["-o", "-", "--skip-existing"], "--skip-existing needs a file"),
        (["-o", "x.npy", "--columns", "3"], "--columns is for a grid"),
    ],
)
def test_what_has_no_effect_is_refused(bundle, here, undrawn, arguments, message):
    result = run("sample", bundle.path, *arguments)
    assert result.exit_code == 2
    assert message in result.output


def test_several_pictures_do_not_fit_standard_output(pipeline, here, undrawn):
    result = run("sample", pipeline.path, "--prompt", "a", "-n", 2, "-o", "-")
    assert "--output - must be one picture, got 2: give --format npy for all in one" in result.output


def test_json_says_what_was_drawn(pipeline, here):
    result = run(
        "sample", pipeline.path, "--prompt", "a cat", "--steps", 2, "-n", 2, "--seed", 3, "-o", "c.png", "--json"
    )
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["files"] == ["c-3.png", "c-4.png"]
    assert [(one["seed"], one["prompt"], one["file"]) for one in found["samples"]] == [
        (3, "a cat", "c-3.png"),
        (4, "a cat", "c-4.png"),
    ]
    assert (found["model"], found["steps"], found["width"], found["height"]) == ("handmade", 2, 8, 8)
    assert found["seconds"] > 0


@pytest.mark.parametrize("command", [["info", "fashion"], ["doctor"]])
def test_json_of_what_is_looked_at(command):
    assert json.loads(run(*command, "--json").stdout)


def test_quiet_says_nothing(bundle, here):
    result = run("sample", bundle.path, "--steps", 2, "-n", 2, "-o", "x.png", "--quiet")
    assert (result.exit_code, result.output) == (0, "")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a red cat, in the rain!", "a-red-cat-in-the-rain"),
        ("../../etc/passwd", "etc-passwd"),
        ("日本の猫", "日本の猫"),
        ("a\x00b\nc", "a-b-c"),
        ("...", "none"),
        ("é" * 99, "é" * 40),
    ],
)
def test_a_text_is_made_safe_for_file_systems(text, name):
    assert safe_name(text) == name


def test_the_title_of_files_of_several_classes_names_them(bundle, here):
    result = run("sample", bundle.path, "--cond", "bag", "--cond", "coat", "-n", 2, "--steps", 2, "-o", "{index}.png")
    assert result.exit_code == 0, result.output
    assert "tiny: bag, coat, ddim, 2 steps" in result.output
