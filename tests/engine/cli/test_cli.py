"""The command line, as a user types it."""

import os
import re
import signal
import subprocess
import sys
from importlib import metadata

import numpy as np
import pytest
import support
import tolerances
from PIL import Image
from typer.testing import CliRunner

import stepfuse as sf
from stepfuse.cli import app
from stepfuse.cli.grid import conds_per_sample
from stepfuse.extras import pip_install

runner = CliRunner()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return support.write_tiny_bundle(tmp_path_factory.mktemp("cli") / "tiny")


def run(*arguments):
    return runner.invoke(app, [str(argument) for argument in arguments])


def test_sample_writes_a_grid_that_says_how_it_was_made(bundle, tmp_path):
    path = tmp_path / "deep" / "grid.png"
    result = run("sample", bundle.path, "-n", 5, "--steps", 4, "-g", 3, "--columns", 3, "-o", path)
    assert result.exit_code == 0, result.output
    assert "ddim, 4 steps, guidance 3" in result.output
    assert "40 network passes in 4 forwards" in result.output  # 5 samples, 4 steps, 2 passes
    with Image.open(path) as picture:
        assert "ddim, 4 steps, guidance 3" in picture.text["Description"]
        assert picture.width > picture.height  # three columns, two rows


def test_sample_writes_raw_samples_that_the_api_gives_too(bundle, tmp_path):
    path = tmp_path / "raw.npy"
    result = run("sample", bundle.path, "-n", 2, "--cond", "1", "--steps", 3, "-g", 2, "--seed", 7, "-o", path)
    assert result.exit_code == 0, result.output
    with sf.Engine.load(bundle.path) as engine:
        expected = engine.sample(2, cond=1, steps=3, guidance_scale=2.0, seed=7)
    np.testing.assert_array_equal(np.load(path), expected)


def test_sample_runs_the_network_in_the_library_that_is_asked_for(bundle, tmp_path, monkeypatch):
    pytest.importorskip("openvino")
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / "raw.npy"
    how = ["-n", 2, "--cond", "1", "--steps", 3, "-g", 2, "--seed", 7]
    result = run("sample", bundle.path, *how, "--backend", "openvino", "-o", path)
    assert result.exit_code == 0, result.output
    with sf.Engine.load(bundle.path) as engine:
        expected = engine.sample(2, cond=1, steps=3, guidance_scale=2.0, seed=7)
    assert 0 < abs(np.load(path) - expected).max() <= tolerances.OPENVINO * abs(expected).max()
    assert run("sample", bundle.path, *how, "--backend", "auto", "-o", tmp_path / "auto.npy").exit_code == 0
    assert abs(np.load(tmp_path / "auto.npy") - expected).max() <= tolerances.OPENVINO * abs(expected).max()
    result = run("sample", bundle.path, "--precision", "bf16", "-o", tmp_path / "half.npy")
    assert result.exit_code == 2
    assert "--precision must be float32 for ONNX Runtime, got 'bf16'" in " ".join(result.output.split())


def test_sample_begins_with_a_picture_and_keeps_what_the_mask_does(bundle, tmp_path):
    _, height, width = support.SHAPE
    levels = np.linspace(0, 255, height * width).astype(np.uint8).reshape(height, width)
    Image.fromarray(levels).save(tmp_path / "image.png")
    keep = np.zeros((height, width), np.uint8)
    keep[:, :2] = 255
    Image.fromarray(keep).save(tmp_path / "mask.png")
    path, pictures = tmp_path / "raw.npy", ["--image", tmp_path / "image.png", "--strength", 0.5]
    common = [bundle.path, "-n", 2, "--cond", "1", "--steps", 4, "-g", 2, "--seed", 7, "-o", path]
    image = levels[None] / np.float32(127.5) - 1
    with sf.Engine.load(bundle.path) as engine:
        settings = {"cond": 1, "steps": 4, "guidance_scale": 2.0, "seed": 7, "image": image, "strength": 0.5}
        assert run("sample", *common, *pictures).exit_code == 0
        np.testing.assert_allclose(np.load(path), engine.sample(2, **settings), atol=1e-5)
        assert run("sample", *common, "--force", *pictures, "--mask", tmp_path / "mask.png").exit_code == 0
    np.testing.assert_allclose(np.load(path)[..., 2:], np.stack([image] * 2)[..., 2:], atol=1e-6)
    result = run("sample", *common, "--force", "--mask", tmp_path / "mask.png")
    assert "--mask needs --image" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--image", "nowhere.png"], "nowhere.png"),
        (["--strength", "0.5"], "--strength needs --image"),
        (["--steps", "0"], "--steps must be between 1 and 1000, got 0"),
        (["--sampler", "magic"], "--sampler must be one of"),
        (["--sampler", "dimm"], "got 'dimm' (did you mean ddim?)"),
        (["--sampler", "DPMSolverMultistepScheduler"], "got 'DPMSolverMultistepScheduler' (here: dpmpp_2m)"),
        (["--sampler-option", "karras"], "--sampler-option must be NAME=VALUE such as karras=true, got 'karras'"),
        (["--sampler-option", "spacing="], "--sampler-option must be NAME=VALUE such as karras=true, got 'spacing='"),
        (["--sampler-option", "steps=4"], "--sampler-option steps has an option of its own: give --steps"),
        (["--sampler-option", "clip=1", "--sampler-option", "clip=2"], "clip must be given once, got 'clip=2' too"),
        (["--sampler-option", "use_karras_sigmas=true"], "got use_karras_sigmas (here: --karras)"),
        (["--sampler-option", "spacing=even"], "--spacing must be 'leading', 'trailing' or 'linspace', got 'even'"),
        (["--spacing", "even"], "--spacing must be 'leading', 'trailing' or 'linspace', got 'even'"),
        (["--karras"], "--karras must be left out with sampler 'ddim', which has no such option"),
        (["--guidance-interval", "0.2"], "--guidance-interval must be 2 numbers with commas between, got '0.2'"),
        (["--guidance-interval", "0.8,0.2"], "--guidance-interval must be (start, stop)"),
        (["--guidance-rescale", "2"], "--guidance-rescale must be between 0 and 1, got 2"),
        (["--spacing", "leading", "--sampler-option", "spacing=trailing"], "spacing must be given once"),
        (["--sampler-option", "prediction_type=sample"], "got prediction_type"),
        (["--cond", "spaceship"], "--cond must be one of"),
        (["--cond", "bagg"], "got 'bagg' (did you mean bag?)"),
        (["-g", "nan"], "--guidance-scale must be at least 0 and finite, got nan"),
        (["-n", "0"], "--number must be at least 1, got 0"),
    ],
)
def test_bad_input_is_reported_in_a_line(bundle, tmp_path, arguments, message):
    path = tmp_path / "none.png"
    result = run("sample", bundle.path, "-o", path, *arguments)
    assert result.exit_code == (1 if "nowhere.png" in message else 2)
    assert message in result.output
    assert "Traceback" not in result.output
    assert not path.exists()


@pytest.mark.parametrize(
    ("sampler", "texts", "options"),
    [
        ("dpmpp_2m", ["karras=true", "final-alpha-cumprod=0.9999"], {"karras": True, "final_alpha_cumprod": 0.9999}),
        ("euler", ["spacing=trailing"], {"spacing": "trailing"}),
        ("ddim", ["timesteps=900,500,0", "clip=1"], {"timesteps": (900, 500, 0), "clip": 1}),
        ("ddim", ["guidance_interval=0.2,0.8", "clip=none"], {"guidance_interval": (0.2, 0.8)}),
        (
            "lcm",
            ["original_steps=20", "dynamic_threshold=0.9,2"],
            {"original_steps": 20, "dynamic_threshold": (0.9, 2)},
        ),
    ],
)
def test_options_of_a_sampler_are_those_of_the_api(bundle, tmp_path, sampler, texts, options):
    path = tmp_path / "raw.npy"
    given = [part for text in texts for part in ("--sampler-option", text)]
    steps = [] if "timesteps" in options else ["--steps", 4]
    common = [bundle.path, "-n", 2, "--cond", "1", *steps, "-g", 2, "--sampler", sampler]
    result = run("sample", *common, "--seed", 3, "-o", path, *given)
    assert result.exit_code == 0, result.output
    with sf.Engine.load(bundle.path) as engine:
        count = {} if "timesteps" in options else {"steps": 4}
        want = engine.sample(2, cond=1, guidance_scale=2.0, seed=3, sampler=sampler, **count, **options)
    np.testing.assert_array_equal(np.load(path), want)


def test_a_missing_bundle_says_what_there_is(tmp_path):
    result = run("sample", tmp_path / "nothing")
    assert result.exit_code == 1
    assert "neither an embedded model" in result.output


def test_python_runs_the_package_as_the_command_line(bundle, tmp_path):
    command = [sys.executable, "-m", "stepfuse", "info", str(bundle.path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path)
    assert "checksum matches" in done.stdout


def test_info_says_what_a_bundle_is(bundle):
    result = run("info", bundle.path)
    assert result.exit_code == 0, result.output
    for fact in ("epsilon", "linear, T = 1000", "class_labels", "checksum matches"):
        assert fact in result.output


def test_doctor_finds_this_machine_fit_to_sample():
    result = run("doctor")
    assert result.exit_code == 0, result.output
    assert "instruction sets" in result.output
    assert re.search(rf"processors +{len(os.sched_getaffinity(0))} of ", result.output)
    assert "Sampling on the CPU works." in result.output
    if support.installed("openvino"):
        assert re.search(r"openvino +\S+: computes in float32", result.output)


def test_doctor_names_the_two_packages_that_collide(monkeypatch):
    monkeypatch.setattr("stepfuse.cli.doctor._installed", lambda package: "1.0")
    result = run("doctor")
    assert result.exit_code == 1
    assert "pip uninstall" in " ".join(result.output.split())


def test_text_in_a_bundle_is_no_markup(tmp_path):
    cond = {"class_labels": sf.CondInput(null=2, names=("[/bold]", "bag"))}
    bundle = support.write_tiny_bundle(tmp_path / "odd", cond=cond)
    result = run("info", bundle.path)
    assert result.exit_code == 0, result.output
    assert "[/bold]" in result.output


def test_doctor_names_the_extra_to_install(monkeypatch):
    monkeypatch.setattr("stepfuse.cli.doctor._installed", lambda package: "")
    output = "".join(run("doctor").output.split())
    own = {"test", "dev", "docs", "release", "examples"}  # of those who work on stepfuse
    extras = {one.partition("extra ==")[2].strip(" '\"") for one in metadata.requires("stepfuse")} - own - {""}
    assert {"serve", "export", "openvino"} < extras
    for extra in extras - {"gpu", "torch"}:  # which onnxruntime's row, and export's, stand for
        assert "".join(pip_install(extra).split()) in output


@pytest.mark.parametrize("cond", [support.NULL, "bag"], ids=["null-class", "name"])
def test_any_class_can_be_sampled(bundle, tmp_path, cond):
    result = run("sample", bundle.path, "-n", 1, "--cond", cond, "--steps", 2, "-o", tmp_path / "one.png")
    assert result.exit_code == 0, result.output


def test_a_model_with_two_inputs_is_sampled_without_conditioning_or_not_at_all():
    facts = sf.ModelInfo(support.SHAPE, support.SCHEDULE, cond={**support.COND, "style": sf.CondInput(null=0)})
    assert conds_per_sample(facts, None, 3) is None
    with pytest.raises(ValueError, match="--cond needs a model with one conditioning input, this one has 2"):
        conds_per_sample(facts, ["bag"], 3)


def test_other_formats_are_refused(bundle, tmp_path):
    result = run("sample", bundle.path, "-o", tmp_path / "picture.gif")
    assert result.exit_code == 2
    assert "--output must end in .png, .jpg, .jpeg, .webp or .npy, got 'picture.gif'" in result.output


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".webp"])
def test_pictures_of_other_formats_say_how_they_were_drawn(bundle, tmp_path, suffix):
    for output, files in (("all", ["all"]), ("{index}", ["0", "1"])):
        result = run("sample", bundle.path, "-n", 2, "--steps", 2, "-o", tmp_path / f"{output}{suffix}")
        assert result.exit_code == 0, result.output
        for name in files:
            shown = run("info", tmp_path / f"{name}{suffix}")
            assert shown.exit_code == 0, shown.output
            assert "2 steps" in shown.output
    again = run("sample", "--like", tmp_path / f"1{suffix}", bundle.path, "-o", tmp_path / f"again{suffix}")
    assert again.exit_code == 0, again.output
    assert (tmp_path / f"again{suffix}").read_bytes() == (tmp_path / f"1{suffix}").read_bytes()


def test_a_command_that_is_terminated_leaves_nothing_half_written(tmp_path):
    """In a process of its own: one that the signal ends takes no tests with it."""
    code = """
import pathlib, sys, time
import stepfuse as sf
from stepfuse.cli import app
from stepfuse.files.atomic import scratch_beside

def load(path):
    with scratch_beside(pathlib.Path(sys.argv[1]) / "bundle", folder=True) as scratch:
        (scratch / "weights").write_bytes(b"half")
        print("writing", flush=True)
        time.sleep(60)

sf.Bundle.load = load
app(["info", "tiny"])
"""
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "writing\n"
        assert list(tmp_path.iterdir())
        process.terminate()
    assert process.returncode == 128 + signal.SIGTERM
    assert not list(tmp_path.iterdir())
