"""Shell completion: what is offered, that it is safe to evaluate, and that real shells take the scripts."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import support
from typer.testing import CliRunner

import stepfuse as sf
from stepfuse.cli import app

SCRIPTS = Path(sys.executable).parent


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a bundle in it, and one below."""
    support.write_tiny_bundle(tmp_path / "tiny")
    shutil.copytree(tmp_path / "tiny", tmp_path / "models" / "mine")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def offered(line):
    """What bash is offered for the last word of a line, which is complete to there."""
    words = line.split(" ")
    given = {"_STEPFUSE_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    result = CliRunner().invoke(app, [], prog_name="stepfuse", env=given)
    assert result.exit_code == 0, result.output
    return result.output.split()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("stepfuse ser", ["serve"]),
        ("stepfuse sample --sampl", ["--sampler", "--sampler-option"]),
        ("stepfuse sample --sampler dpmpp_2", ["dpmpp_2m", "dpmpp_2m_sde", "dpmpp_2s"]),
        ("stepfuse sample --sampler fitted-8", ["fitted-8"]),
        ("stepfuse sample tiny --sampler fitted", []),
        ("stepfuse sample fash", ["fashion", "fashion-8step"]),
        ("stepfuse sample ti", ["tiny"]),
        ("stepfuse sample models/", ["models/mine"]),
        ("stepfuse serve fashion ti", ["tiny"]),
        ("stepfuse info picture", []),  # the shell's own completion has files
        ("stepfuse sample --cond a", ["ankle-boot"]),
        ("stepfuse sample tiny --steps 3 --cond sn", ["sneaker"]),
        ("stepfuse sample --cond bag --cond b", ["bag"]),
        ("stepfuse sample --cond bag --cond bag --seed 1 --seed 2 --spacing tr", ["trailing"]),
        ("stepfuse sample no-such --cond a", []),
        ("stepfuse batch x.jsonl --format w", ["webdataset"]),
        ("stepfuse analyze --only round", ["round_trip", "round_trip_conditioned"]),
    ],
)
def test_words_are_completed(here, line, words):
    assert offered(line) == words


def test_what_a_name_would_have_a_shell_run_is_not_offered(here):
    manifest = here / "tiny" / "manifest.json"
    names = ["$(touch a)", "`touch b`", "x; touch c", r"\$(touch d)", "7", "e'f", "Same one", "same-one"]
    content = json.loads(manifest.read_text())
    content["cond"]["class_labels"]["names"][:] = names
    content["cond"]["class_labels"]["null"] = len(names)
    manifest.write_text(json.dumps(content))
    assert offered("stepfuse sample tiny --cond ") == ["touch-a", "touch-b", "x-touch-c", "touch-d", "e-f"]
    (here / "$(touch g)").mkdir()
    shutil.copy(manifest, here / "$(touch g)")
    assert offered("stepfuse sample $") == []


def test_every_class_that_is_offered_names_itself():
    [spec] = sf.Bundle.load("fashion", verify=False).info.cond.values()
    words = offered("stepfuse sample --cond ")
    assert [int(spec.value("cond", word)) for word in words] == list(range(10))


def test_completing_loads_no_network_library():
    slow = ("onnxruntime", "torch", "PIL", "matplotlib", "fastapi")
    code = (
        "import sys\nfrom stepfuse.cli import app\ntry: app(prog_name='stepfuse')\n"
        f"finally: print([name for name in {slow} if name in sys.modules])"
    )
    line = "stepfuse sample fashion --cond sn"
    given = {"_STEPFUSE_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": "4"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env={**os.environ, **given}, capture_output=True, text=True, check=True)
    assert done.stdout == "sneaker\n[]\n"


def in_shell(shell, script, home):
    """Runs a script in a shell with ``stepfuse`` on its path."""
    found = {"HOME": str(home), "PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}"}
    options = {"bash": ["--norc"], "zsh": ["-f"], "fish": ["--no-config"]}[shell]
    command = [shutil.which(shell), *options, "-c", script]
    done = subprocess.run(command, env={**os.environ, **found}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


#: What a shell offers for ``stepfuse sample --sampler dpmpp_2``, by the script that --install-completion has written.
OFFERS = {
    "bash": """
        source ~/.bashrc
        COMP_WORDS=(stepfuse sample --sampler dpmpp_2) COMP_CWORD=3
        "$(complete -p stepfuse | sed 's/.*-F \\([^ ]*\\) .*/\\1/')" stepfuse
        printf '%s\\n' "${COMPREPLY[@]}" """,
    "zsh": """
        compdef() { :; }
        words=(stepfuse sample --sampler dpmpp_2) CURRENT=4
        _arguments() { print -r -- "$1" | tr -d '()":*' | tr ' ' '\\n' | grep dpmpp; }
        source ~/.zfunc/_stepfuse
        _stepfuse_completion""",
    "fish": """
        source ~/.config/fish/completions/stepfuse.fish
        complete -C 'stepfuse sample --sampler dpmpp_2'""",
}


@pytest.mark.parametrize("shell", list(OFFERS))
def test_a_shell_completes(shell, tmp_path):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    installed = in_shell(shell, "stepfuse --install-completion; true", tmp_path)
    assert f"{shell} completion installed in {tmp_path}" in installed
    assert "_STEPFUSE_COMPLETE" in in_shell(shell, "stepfuse --show-completion; true", tmp_path)
    assert in_shell(shell, OFFERS[shell], tmp_path).split() == ["dpmpp_2m", "dpmpp_2m_sde", "dpmpp_2s"]
