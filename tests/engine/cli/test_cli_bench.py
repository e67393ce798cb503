"""``stepfuse bench``, as a user types it, and the exit codes that a CI reads."""

import json

import numpy as np
import pytest
import support
from PIL import Image
from typer.testing import CliRunner

import stepfuse as sf
from stepfuse.benchmarking import BenchResult, Case, Configuration
from stepfuse.cli import app

runner = CliRunner()
FEW = ["--backend", "onnxruntime", "--rows", "1,2", "--steps", "2", "--seconds", "0.01", "--no-cold-start"]
EVEN = np.linspace(0.99, 1.01, 21)


def run(*arguments):
    return runner.invoke(app, ["bench", *(str(one) for one in arguments)])


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return support.write_tiny_bundle(tmp_path_factory.mktemp("bench") / "tiny")


def result(scale=1.0, times=EVEN):
    cases = [
        Case(Configuration("onnxruntime"), 1, steps, 5, list(scale * np.asarray(times) * share))
        for steps, share in ((0, 0.9), (5, 1.0))
    ]
    facts = {"machine": {"processor": "A", "cores": 2}, "versions": {}, "load_average_before": 0.0}
    return BenchResult("tiny", {}, cases, {}, facts=facts)


@pytest.fixture
def measured(monkeypatch):
    """Has ``stepfuse.bench`` find what it is given; says what it was asked for."""
    asked = []

    def found(value):
        monkeypatch.setattr(sf, "bench", lambda model, **how: asked.append((model, how)) or value)
        return asked

    return found


def test_it_measures_and_writes_what_it_says(bundle, tmp_path):
    file, plot = tmp_path / "a.json", tmp_path / "deep" / "a.png"
    outcome = run(bundle.path, *FEW, "--rate", "400", "-o", file, "--plot", plot)
    assert outcome.exit_code == 0, outcome.output
    for text in (
        "a forward of the bare network",
        "runs of the engine, ddim",
        "images/s",
        "requests that arrive at random",
    ):
        assert text in outcome.output
    found = BenchResult.load(file)
    assert found.model == "tiny"
    assert {case.work for case in found.cases} == {(1, 0), (2, 0), (1, 2), (2, 2)}
    with Image.open(plot) as picture:
        assert picture.width > picture.height
    again = run(bundle.path, *FEW, "-o", file)
    assert again.exit_code == 1
    assert "a.json exists already: give --force to replace it" in again.output


def test_options_are_those_of_the_call(measured):
    asked = measured(result())
    options = ["--rows", "1,8", "--steps", "5,20", "--threads", "1,2", "--rate", "2.5", "--seconds", "3", "--quick"]
    outcome = run("fashion", *options, "--precision", "float32", "--precision", "bf16", "--cold-start", "-q")
    assert (outcome.exit_code, outcome.output) == (0, "")
    [(model, how)] = asked
    assert model == "fashion"
    wanted = {"rows": [1, 8], "steps": [5, 20], "threads": [1, 2], "rates": [2.5], "seconds": 3.0, "quick": True}
    wanted |= {
        "backends": None,
        "precisions": ["float32", "bf16"],
        "cold_start": True,
        "device": "cpu",
        "progress": False,
    }
    assert how == wanted


def test_json_to_standard_output_is_all_there(measured):
    measured(result())
    for how in (["--json"], ["--output", "-"]):
        assert json.loads(run("fashion", *how).stdout)["model"] == "tiny"


@pytest.mark.parametrize(
    ("scale", "times", "code", "text"),
    [
        pytest.param(1.0, EVEN, 0, "no case is slower by more than 5%", id="same"),
        pytest.param(0.5, EVEN, 0, "no case is slower by more than 5%", id="faster"),
        pytest.param(1.5, EVEN, 3, "2 of 2 cases are slower by more than 5%", id="slower"),
        pytest.param(1.05, EVEN, 4, "no conclusion about 2 of 2 cases", id="unclear"),
        pytest.param(1.0, np.linspace(0.5, 2, 21), 4, "no conclusion about 2 of 2 cases", id="noisy"),
    ],
)
def test_the_exit_code_says_what_a_comparison_found(measured, tmp_path, scale, times, code, text):
    result().save(tmp_path / "before.json")
    measured(result(scale, times))
    outcome = run("fashion", "--compare", tmp_path / "before.json", "-o", tmp_path / "now.json")
    assert outcome.exit_code == code, outcome.output
    assert text in outcome.output
    assert BenchResult.load(tmp_path / "now.json").cases  # kept whatever was found


def test_a_threshold_is_the_user_s(measured, tmp_path):
    result().save(tmp_path / "before.json")
    measured(result(1.5))
    assert run("fashion", "--compare", tmp_path / "before.json", "--threshold", "0.6").exit_code == 0


def test_noise_is_said_and_nothing_is_concluded(measured):
    noisy = result(times=np.linspace(0.5, 2, 21))
    other = Configuration("openvino")
    cases = [*noisy.cases, *(Case(other, case.rows, case.steps, 5, case.seconds) for case in noisy.cases)]
    measured(BenchResult("tiny", {}, cases, {}, failures={Configuration("openvino", "f16"): "no"}, facts=noisy.facts))
    output = run("fashion").output
    assert "no conclusion, too noisy: onnxruntime float32; openvino float32" in output
    assert "noisy: 4 of 4 cases" in output
    assert "openvino f16 failed: no" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rows", "1,x"], "--rows must be whole numbers with commas between, got '1,x'"),
        (["--rows", "0"], "--rows must be between 1 and 65536, got 0"),
        (["--rate", "fast"], "--rate must be numbers with commas between, got 'fast'"),
        (["--rate", "-1"], "--rate must be above 0 and finite, got -1.0"),
        (["--backend", "torch"], "--backend must be some of onnxruntime, openvino, got 'torch'"),
        (["--threshold", "0.1"], "--threshold needs --compare"),
        (["--output", "a.txt"], "--output must end in .json, got 'a.txt'"),
        (["--plot", "a.json"], "--plot must end in .png, .svg or .pdf, got 'a.json'"),
        (["--plot", "-"], "--plot must name a file, got '-'"),
        (["--device", "cuda"], "--device must be 'cpu', got 'cuda'"),
    ],
)
def test_wrong_usage_is_a_line(bundle, arguments, message):
    outcome = run(bundle.path, *arguments)
    assert outcome.exit_code == 2, outcome.output
    assert message in " ".join(outcome.output.split())


def test_what_cannot_be_compared_with_is_said_before_anything_is_measured(bundle, measured, tmp_path):
    measured(None)
    (tmp_path / "before.json").write_text("{}")
    outcome = run(bundle.path, "--compare", tmp_path / "before.json")
    assert outcome.exit_code == 2
    assert "before.json must hold what stepfuse bench --output has written" in outcome.output
