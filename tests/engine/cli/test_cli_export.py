"""``stepfuse export``, as a user types it."""

import re

import pytest
import tiny_pipelines
from typer.testing import CliRunner

import stepfuse as sf
from stepfuse.cli import app

pytest.importorskip("torch")
pytest.importorskip("diffusers", reason="diffusers needs Python 3.11")


def stepfuse(*arguments):
    return CliRunner().invoke(app, [str(one) for one in arguments])


def test_a_folder_is_exported_and_sampled(tmp_path):
    folder = tiny_pipelines.save_tiny("DDIMPipeline", tmp_path / "tiny")
    done = stepfuse("export", folder, "-o", tmp_path / "bundle", "--size", "24x16", "--sampler", "dpmpp_2m")
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert lines[:3] == ["0/4 denoiser.onnx: loading unet", "1/4 denoiser.onnx: exporting", lines[2]]
    assert re.search(r"denoiser\.onnx: [0-9.]+ kB, error ", done.output)
    assert f"next: stepfuse sample {tmp_path / 'bundle'}" in done.output
    bundle = sf.Bundle.load(tmp_path / "bundle")
    assert bundle.info.shape == (3, 16, 24)
    assert bundle.info.defaults["sampler"] == "dpmpp_2m"
    sampled = stepfuse("sample", tmp_path / "bundle", "-n", 1, "--steps", 2, "-o", tmp_path / "one.png", "--threads", 1)
    assert sampled.exit_code == 0, sampled.output
    again = stepfuse("export", folder, "-o", tmp_path / "bundle")
    assert again.exit_code == 1
    assert "exists already" in again.output


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--size", "wide"], "--size must be a number of pixels or WIDTHxHEIGHT, got 'wide'"),
        (["--size", "16x16x3"], "got '16x16x3'"),
        (["--precision", "int4"], "--precision must be one of float32, float16, got 'int4'"),
        ([], "must be the folder of a diffusers pipeline: there is none"),
    ],
)
def test_bad_input_is_reported_in_a_line(tmp_path, arguments, match):
    folder = tmp_path / "nowhere"
    if arguments:
        folder = tmp_path / "pipeline"
        folder.mkdir()
        (folder / "model_index.json").write_text("{}")
    done = stepfuse("export", folder, "-o", tmp_path / "bundle", *arguments)
    assert done.exit_code == (2 if arguments else 1)
    assert match in " ".join(done.output.split())
    assert not (tmp_path / "bundle").exists()
