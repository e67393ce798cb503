"""What programs read, and what a terminal shows: JSON, exit codes, colours, progress."""

import json
import os
import pty
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import support
from typer.main import get_command
from typer.testing import CliRunner

from stepfuse.cli import app
from stepfuse.cli.command import EXIT_CODES

STEPFUSE = [sys.executable, "-m", "stepfuse"]
COMMANDS_PAGE = Path(__file__).parents[3] / "docs" / "commands.md"
COLOUR = re.compile(r"\x1b\[(?:[0-9;]*;)?(?:3[0-7]|9[0-7]|38;[0-9;]+)m")  # of text, by ECMA-48


def run(*arguments):
    return CliRunner().invoke(app, [str(one) for one in arguments])


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return support.write_tiny_bundle(tmp_path_factory.mktemp("terminal") / "tiny")


@pytest.fixture
def here(bundle, tmp_path, monkeypatch):
    """A folder with what the commands below are given; what takes a pipeline or a LoRA is stood in for."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").symlink_to(bundle.path)
    (tmp_path / "requests.jsonl").write_text('{"prompt": "bag", "seed": 1, "steps": 2}\n')
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "model_index.json").write_text("{}")
    made = replace(bundle, export={"errors": {"denoiser.onnx": {"prediction": 1e-6}}, "left_out": [], "loras": []})
    monkeypatch.setattr("stepfuse.export.from_diffusers", lambda *_, **options: made)
    monkeypatch.setattr("stepfuse.export.unfuse_lora", lambda *_, **options: made)
    return tmp_path


#: A small run of each command that reports; the fields that a program would read first.
REPORTS = {
    "sample": ("sample tiny -n 2 --steps 2 -o {out}.png", ["files", "samples", "seconds"]),
    "interpolate": ("interpolate tiny -n 2 --steps 2 -o {out}.png", ["files", "sampler"]),
    "batch": ("batch requests.jsonl --model tiny -o {out}", ["drawn", "failed"]),
    "analyze": ("analyze tiny --quick --only paths -o {out}", ["report", "experiments"]),
    "export": ("export pipeline -o {out}", ["bundle", "errors", "next"]),
    "lora": ("lora tiny --remove -o {out}", ["bundle", "loras"]),
    "fit": ("fit tiny --steps 2 -g 1 --samples 20 --held-out 4 --rounds 1 --no-compare -o {out}.npz", ["file"]),
    "info": ("info tiny", ["name", "files"]),
    "doctor": ("doctor", ["findings"]),
    "quantize": ("quantize tiny --even-if-slower --threads 1 -o {out}", ["bundle", "quantization"]),
    "bench": ("bench tiny --quick --rows 1 --steps 2 --seconds 0.1 --backend onnxruntime", ["model", "cases"]),
    "plan": ("plan tiny --for 8.9", ["folder", "plans"]),
}


def test_every_command_but_serve_reports_as_json():
    commands = get_command(app).commands
    reporting = {name for name, one in commands.items() if any(param.name == "json" for param in one.params)}
    assert reporting == set(REPORTS) == set(commands) - {"serve"}


#: What of it names what runs, on standard error.
PROGRESS = {
    "analyze": "running paths\n",
    "fit": "24 samples in 100 steps of unipc\n",
    "lora": "taking LoRAs out of tiny\n",
    "plan": "building a plan of denoiser.onnx\n",
    "quantize": "quantizing tiny, and measuring it in float32 and int8\n",
}


@pytest.mark.parametrize("name", list(REPORTS))
def test_standard_output_is_one_object(here, name):
    if name == "plan":
        pytest.importorskip("tensorrt_rtx")
    line, fields = REPORTS[name]
    done = run(*line.format(out="out").split(), "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout).keys() >= set(fields)
    assert PROGRESS.get(name, "") in done.stderr


@pytest.mark.parametrize("name", ["sample", "interpolate", "batch", "lora", "info"])
def test_a_quiet_command_says_nothing(here, name):
    done = run(*REPORTS[name][0].format(out="out").split(), "--quiet")
    assert (done.exit_code, done.stdout, done.stderr) == (0, "", "")


def test_help_and_docs_list_the_exit_codes():
    listed = re.findall(r"^  (\d+) +(.*)$", run("--help").output.partition("\nExit codes:\n")[2], re.MULTILINE)
    assert {int(code): text for code, text in listed} == EXIT_CODES
    table = COMMANDS_PAGE.read_text().partition("| exit code | when |")[2].partition("\n\n")[0]
    assert [int(code) for code in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)] == list(EXIT_CODES)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--version"], 0),
        (["info", "fashion"], 0),
        (["info", "no-such-model"], 1),
        (["info", "no-such.png"], 1),
        (["info"], 2),
        (["sample", "--steps", "2", "-o", "/dev/null/x.png"], 1),
        (["sample", "--steps", "0", "-o", "x.png"], 2),
        (["no-such-command"], 2),
    ],
)
def test_exit_codes(here, arguments, code):
    done = subprocess.run([*STEPFUSE, *arguments], capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert bool(done.stderr) == bool(code)
    assert bool(done.stdout) == (code == 0)


def shown_on_terminal(command, **settings):
    """What a command writes to a terminal, both streams."""
    main, side = pty.openpty()
    try:
        with subprocess.Popen(command, stdout=side, stderr=side, env={**os.environ, **settings}) as process:
            os.close(side)
            found = b""
            try:
                while part := os.read(main, 4096):
                    found += part
            except OSError:  # the other side is closed
                pass
            process.wait(timeout=60)
    finally:
        os.close(main)
    return found.decode()


DOCTOR = [*STEPFUSE, "doctor"]
WRONG = [*STEPFUSE, "info", "no-such-model"]


@pytest.fixture
def plain(monkeypatch):
    """An environment that asks for nothing."""
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "COLORTERM", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


@pytest.mark.parametrize("command", [DOCTOR, WRONG, [*STEPFUSE, "--help"]], ids=["doctor", "error", "help"])
def test_colours_are_for_terminals(plain, command):
    assert COLOUR.search(shown_on_terminal(command)), "none on a terminal"
    assert not COLOUR.search(shown_on_terminal(command, NO_COLOR="1"))
    assert "\x1b" not in shown_on_terminal(command, TERM="dumb")
    piped = subprocess.run(command, capture_output=True, text=True)
    forced = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "FORCE_COLOR": "1"})
    assert "\x1b" not in piped.stdout + piped.stderr
    assert COLOUR.search(forced.stdout + forced.stderr)
    plain_lines = re.sub(r"\x1b\[[0-9;]*m", "", forced.stdout).splitlines()
    assert [line.rstrip() for line in plain_lines] == piped.stdout.splitlines()  # none is wrapped


def test_progress_in_a_log_is_lines_even_where_colours_are_asked_for(plain, here):
    command = [*STEPFUSE, "sample", "tiny", "-n", "2", "--steps", "3", "-o", "x.png"]
    forced = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "FORCE_COLOR": "1"})
    assert (forced.returncode, forced.stderr) == (0, "")


def test_a_bar_says_what_is_drawn(plain, here):
    shown = shown_on_terminal([*STEPFUSE, "sample", "fashion", "-n", "8", "--steps", "40", "-o", "x.png"])
    assert "8 samples with ddim" in shown
    assert "/40" in shown
