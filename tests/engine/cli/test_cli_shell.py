"""The command line in a shell: exit codes, pipes, terminals, Ctrl-C, and words that are its own."""

import os
import pty
import re
import signal
import subprocess
import sys
import time
from importlib.metadata import version

import handmade
import numpy as np
import pytest
import support
import typer.main
from typer.testing import CliRunner

import stepfuse as sf
from stepfuse.cli import app
from stepfuse.cli.app import COMMANDS
from stepfuse.cli.words import in_words_of

runner = CliRunner()
STEPFUSE = [sys.executable, "-m", "stepfuse"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return support.write_tiny_bundle(tmp_path_factory.mktemp("shell") / "tiny")


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return handmade.write_bundle(tmp_path_factory.mktemp("shell") / "pipeline")


def run(*arguments):
    return runner.invoke(app, [str(one) for one in arguments])


@pytest.mark.parametrize("option", ["--version", "-V"])
def test_the_version_is_said(option):
    result = run(option)
    assert (result.exit_code, result.output) == (0, f"stepfuse {sf.__version__}\n")
    assert sf.__version__ == version("stepfuse")  # of the installed package


def test_no_command_gives_the_help():
    result = run()
    assert result.exit_code == 0
    assert result.output == run("--help").output
    for name in COMMANDS:
        assert f"  {name}  " in result.output


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_is_grouped_and_has_examples_that_are_right(name):
    output = run(name, "-h").output
    assert output.startswith(tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ"))
    assert "\nUsage: " in output
    examples = output.partition("\nExamples:\n")[2].splitlines()
    assert examples
    command = typer.main.get_command(app).commands[name]
    for example in examples:
        assert example.startswith(f"  stepfuse {name}")
        command.make_context(name, __import__("shlex").split(example)[2:])
    assert not re.search(r" $|\[OPTIONS\].*\[OPTIONS\]", output, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sampel"], "no command 'sampel' (did you mean sample?)"),
        (["sample", "--stepz", "3"], "no option --stepz (did you mean --steps?)"),
        (["sample", "--cfg-scale", "3"], "no option --cfg-scale (here: --guidance-scale)"),
        (["export", "x", "-o", "y", "--overwrite"], "no option --overwrite (here: --force)"),
        (["export", "x"], "--output"),
        (["sample", "--steps", "many"], "--steps must be a whole number, got 'many'"),
        (["sample", "-g", "abc"], "--guidance-scale must be a number, got 'abc'"),
        (["sample", "--columns", "0"], "--columns must be at least 1, got '0'"),
        (["plan", "fashion", "--level", "9"], "at most 5, got '9'"),
        (["interpolate", "--cond", "bag", "--cond", "coat"], "--cond must be given once, got it 2 times"),
        (["sample", "-g", "1", "--guidance-scale", "2"], "--guidance-scale must be given once, got it 2 times"),
        (["sample", "--karras", "--no-karras"], "--karras must be given once, got it 2 times"),
        (["sample", "--spacing", "trailin"], "got 'trailin' (did you mean trailing?)"),
        (["sample", "--sampler-option", "etaa=1"], "got etaa (did you mean --eta?)"),
        (["analyze", "fashion", "--only", "frontie"], "got frontie (did you mean frontier?)"),
    ],
)
def test_wrong_usage_ends_with_two(arguments, message):
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.output
    assert "─" not in result.output


def test_info_says_what_it_cannot_read(tmp_path):
    path = tmp_path / "missing.png"
    missing = run("info", path)
    assert (missing.exit_code, missing.output) == (1, f"stepfuse: {path}: No such file or directory\n")
    np.save(tmp_path / "samples.npy", np.zeros((1, 1, 4, 4), np.float32))
    numbers = run("info", tmp_path / "samples.npy")
    assert numbers.exit_code == 2
    assert "samples.npy holds samples as numbers, and not how they were drawn" in numbers.output


def test_an_export_of_a_folder_that_is_not_there_does_not_load_torch(tmp_path):
    arguments = ["export", str(tmp_path / "no"), "-o", str(tmp_path / "bundle")]
    code = f"import sys\nfrom stepfuse.cli import app\ntry: app({arguments})\nfinally: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "must be the folder of a diffusers pipeline: there is none" in done.stderr
    assert done.stdout == "False\n"


def test_a_misspelt_model_is_recognized(bundle):
    assert "(did you mean fashion?)" in run("info", "fashoin").output
    near = bundle.path.with_name("tinny")
    assert f"(did you mean {bundle.path}?)" in run("info", near).output


#: What the API says and a command must not: assignments, names with underscores that are options, Python's values.
PYTHONIC = re.compile(
    r"\w=(True|False|None)\b|\bEngine\b|\bsf\.|\bgot None\b|\bNone,|Errno|as_completed|num_images|stepfuse\.Cuda"
)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--guidance-scale", "-1"], "--guidance-scale must be at least 0"),
        (["--strength", "2", "--image", "half.png"], "--strength must be above 0 and at most 1"),
        (["--mask", "half.png"], "--mask needs --image"),
        (["--eta", "2"], "--eta must be between 0 and 1"),
        (["--eta", "1", "--sampler", "heun"], "--eta must be left out with sampler 'heun'"),
        (["--seed", "-1"], "--seed must be between 0 and 2^64 - 1"),
        (["--device", "tpu"], "--device must be 'cpu', 'cuda' or 'cuda:N', got 'tpu'"),
        (["--sampler-option", "clip=-1"], "--sampler-option clip must be above 0, got -1"),
        (["--sampler-option", "dynamic_threshold=2"], "--sampler-option dynamic_threshold must be two numbers"),
        (["--sampler-option", "nothing=2"], "--sampler-option of 'ddim' takes timesteps, steps_offset"),
        (["-n", "999999999"], "a run must have at most 1,000,000 samples"),
    ],
)
def test_an_error_speaks_of_options(bundle, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    from PIL import Image

    Image.new("L", support.SHAPE[:0:-1], 128).save("half.png")
    result = run("sample", bundle.path, "--steps", "3", *arguments)
    assert result.exit_code == 2
    assert message in result.output
    assert not PYTHONIC.search(result.output), result.output


@pytest.mark.parametrize(
    ("message", "want"),
    [
        ("x exists already: pass overwrite=True to replace it", "x exists already: give --force to replace it"),
        ("sampler must be one of ddim, got 'heum'", "--sampler must be one of ddim, got 'heum'"),
        (
            "judge brings its own features and real images: leave out features and real",
            "--judge brings its own features and real images: leave out --features and --real",
        ),
        ("slerp needs noise, got zeros: use path='lerp'", "slerp needs noise, got zeros: use --path lerp"),
        ("got 'guidance_scale.png'", "got 'guidance_scale.png'"),
        ("out/guidance_scale.png: no space", "out/guidance_scale.png: no space"),
        ("--steps must be steps=3", "--steps must be steps=3"),
        ("the steps of guidance_scale", "the steps of --guidance-scale"),
        ("here: dpmpp_2m with karras=True", "here: dpmpp_2m with --karras"),
        (
            "features and real go together: real must be given, got None",
            "--features and --real go together: --real must be given",
        ),
    ],
)
def test_words(message, want):
    names = ("sampler", "steps", "guidance_scale", "karras", "judge", "features", "real", "path")
    options = {name: f"--{name.replace('_', '-')}" for name in names}
    assert in_words_of(options, message) == want


@pytest.mark.filterwarnings("default")
def test_a_warning_is_a_line_of_its_own(bundle, tmp_path):
    result = run("sample", bundle.path, "--sampler", "ddpm_strided", "--steps", 3, "-n", 1, "-o", tmp_path / "x.png")
    assert result.exit_code == 0
    assert result.stderr.startswith("stepfuse: ddpm_strided with 3 of 1000 steps is wrong on purpose")
    assert "Warning" not in result.output


def test_lines_are_not_wrapped_in_a_pipe(bundle):
    done = subprocess.run([*STEPFUSE, "info", str(bundle.path)], check=True, capture_output=True, text=True)
    assert any(str(bundle.path) in line for line in done.stdout.splitlines())
    assert not re.search(r" $", done.stdout, re.MULTILINE)
    assert "\x1b" not in done.stdout


def test_a_reader_that_goes_is_no_error(bundle, tmp_path):
    command = [*STEPFUSE, "sample", str(bundle.path), "-n", "300", "--steps", "2", "-o", "{seed}.npy"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path) as process:
        process.stdout.readline()
        process.stdout.close()
        errors = process.stderr.read()
    assert errors == b""
    assert process.returncode == 1


def test_a_full_disk_is_an_error():
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = subprocess.run([*STEPFUSE, "--version"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (1, "stepfuse: No space left on device\n")


def test_ctrl_c_ends_with_130_and_leaves_nothing(tmp_path):
    command = [*STEPFUSE, "sample", "fashion", "-n", "64", "--steps", "1000", "-o", "x.png"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}

    def heed():  # a shell has what it runs in the background ignore Ctrl-C
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(command, cwd=tmp_path, preexec_fn=heed, **pipes) as process:
        deadline = time.monotonic() + 30
        while _processor_seconds(process.pid) < 1.5 and time.monotonic() < deadline:
            time.sleep(0.05)  # until it draws
        process.send_signal(signal.SIGINT)
        output = process.communicate(timeout=30)[0]
    assert process.returncode == 130
    assert b"Traceback" not in output
    assert list(tmp_path.iterdir()) == []


def _processor_seconds(pid):
    with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_pictures_are_not_written_to_a_terminal(bundle):
    main, side = pty.openpty()
    command = [*STEPFUSE, "sample", str(bundle.path), "--steps", "2", "-o", "-"]
    done = subprocess.run(command, stdout=side, stderr=subprocess.PIPE, text=True)
    os.close(side)
    os.close(main)
    assert done.returncode == 2
    assert "--output - must go to a pipe or a file, standard output is a terminal" in done.stderr


def test_progress_without_a_terminal_is_a_line_now_and_then(bundle, tmp_path, monkeypatch):
    monkeypatch.setattr("stepfuse.serving.progress._BETWEEN", 0.0)
    path = tmp_path / "x.png"
    result = run("sample", bundle.path, "--steps", 4, "-n", 2, "-o", path)
    lines = re.findall(r"^2 samples with ddim: (\d) of 4 steps, about \d+ s left$", result.stderr, re.MULTILINE)
    assert lines == ["1", "2", "3", "4"]
    assert "samples with" not in run("sample", bundle.path, "--steps", 4, "-n", 2, "-o", path, "-f", "--quiet").stderr
