"""Every example runs, at a small size, and does what it says."""

import importlib.util
import inspect
import io
import re
from pathlib import Path

import http_service
import numpy as np
import pytest
import support
import tiny_pipelines
import tolerances
from PIL import Image
from typer.testing import CliRunner

import stepfuse as sf

FOLDER = Path(__file__).parents[2] / "examples"


def example(name):
    """An example's module."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(name, *arguments):
    """Runs an example that takes options, and returns what it prints."""
    import typer

    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(example(name).main)
    result = CliRunner().invoke(app, [str(one) for one in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_the_list_names_every_example():
    there = {path.name for path in FOLDER.iterdir() if path.suffix in (".py", ".ipynb")}
    there |= {f"{path.parent.name}/" for path in FOLDER.glob("*/*.py")}
    listed = re.findall(r"^\| \[(.*?)\]\((.*?)\)", (FOLDER / "README.md").read_text(), re.MULTILINE)
    assert sorted(name for name, _ in listed) == sorted(there)
    assert all((FOLDER / link).exists() for _, link in listed)


def test_a_sampler_in_fifteen_lines_meets_the_closed_form():
    module = example("custom_sampler")
    assert len(inspect.getsource(module.my_ddim).splitlines()) <= 15
    assert module.main() < tolerances.ONE_STEP


def test_a_back_end_on_numpy_draws_what_onnx_runtime_draws():
    assert example("custom_backend").main(steps=2) < tolerances.EMBEDDED_MODEL


def test_an_inversion_gives_the_image_back(tmp_path):
    shown = run("inversion", "--target", tmp_path / "x.png", "--steps", 20)
    error = float(re.search(r"differs by ([\d.]+)% of the data range", shown)[1])
    assert 0 < error < 2
    assert Image.open(tmp_path / "x.png").size[0] > 5 * 28 * 3


def test_the_picture_of_edits_is_drawn(tmp_path):
    assert "written to" in run("editing", "--target", tmp_path / "x.png", "--steps", 5)
    assert Image.open(tmp_path / "x.png").size[0] > 6 * 28 * 3


def test_an_application_draws_and_has_the_service_mounted(tmp_path):
    pytest.importorskip("fastapi")
    path = support.write_tiny_bundle(tmp_path / "tiny").path
    with sf.Engine.load(path, threads=1) as engine:
        [image] = engine.sample(1, cond="bag", seed=7, steps=20)
    with http_service.served(example("fastapi_app").make_app(str(path))) as service:
        answer = service.ask("GET", "/garments/bag?seed=7")
        assert (answer.status, answer.headers["content-type"]) == (200, "image/png")
        difference = np.asarray(Image.open(io.BytesIO(answer.body))) - 127.5 * (image[0].clip(-1, 1) + 1)
        assert abs(difference).max() < 0.51  # the rounding of 8 bits
        refused = service.ask("GET", "/garments/hat")
        assert refused.status == 422
        assert "cond must be one of boot, bag" in refused.json["detail"]
        assert service.ask("GET", "/garments/bag?steps=0").status == 422
        assert service.ask("GET", "/stepfuse/v1/models").json["data"][0]["classes"] == list(support.NAMES)
        http_service.until(lambda: service.ask("GET", "/stepfuse/ready").status == 200)


def test_a_diffusers_script_draws_the_same_picture_before_and_after(tmp_path):
    pytest.importorskip("diffusers", reason="diffusers needs Python 3.11")
    tiny_pipelines.save_tiny("StableDiffusionPipeline", tmp_path / "pipeline")
    shown = run("diffusers_before_after", tmp_path / "pipeline", "--steps", 3)
    assert float(re.search(r"largest difference of a pixel: ([\d.e+-]+) of 1", shown)[1]) < tolerances.COMPILED


@pytest.mark.slow
def test_the_notebook_runs_and_shows_tables_and_pictures(monkeypatch, tmp_path):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    notebook = nbformat.read(FOLDER / "notebook.ipynb", as_version=4)
    codes = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs for cell in codes), "is committed without outputs"
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    kinds = [sorted(output.get("data", {})) for cell in codes for output in cell.outputs]
    assert (
        kinds
        == [
            ["text/html", "text/plain"],  # the engine
            ["text/html", "text/plain"],  # the table
            ["image/png", "text/plain"],  # pictures
            ["text/plain"],  # how one was drawn
            *kinds[4:],
        ]
    )
    assert "image/png" in kinds[4]
    assert codes[1].outputs[0].data["text/html"].startswith("<table>")
