"""The documentation site builds strictly, has every public name, command and path, and loads nothing from afar."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import docstrings
import pytest
import typer.main

from stepfuse.cli.app import app

pytest.importorskip("mkdocs", reason="needs the extra docs")
pytest.importorskip("mkdocstrings")
pytest.importorskip("diffusers", reason="diffusers needs Python 3.11")
pytest.importorskip("fastapi", reason="needs the extra serve")

ROOT = Path(__file__).parents[2]


def build(root, site):
    command = [sys.executable, "-m", "mkdocs", "build", "--config-file", root / "mkdocs.yml"]
    return subprocess.run([*command, "--site-dir", site], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT, folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.slow  # half a minute
def test_every_public_name_command_and_path_is_there(site):
    for path, _ in docstrings.public():
        module = path.rpartition(".")[0]
        assert f'id="{path}"' in (site / "reference" / f"{module}.html").read_text(), path
    commands = (site / "reference" / "command-line.html").read_text()
    for name in typer.main.get_command(app).commands:
        assert f'id="stepfuse-{name}"' in commands, name
    http = (site / "reference" / "http.html").read_text()
    assert all(path in http for path in ("/v1/images/generations", "/v1/images/edits", "/ready", "num_inference_steps"))


@pytest.mark.slow
def test_nothing_is_loaded_from_elsewhere(site):
    loads = re.compile(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"([^\"]+)|<link\b[^>]*\bhref=\"([^\"]+)\"[^>]*>")
    for page in site.rglob("*.html"):
        for match in loads.finditer(page.read_text()):
            target = match[1] or match[2]
            assert not re.match(r"(https?:)?//", target), f"{page.name}: {match[0]}"
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//", sheet.read_text()), sheet.name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        pytest.param("[gone](nowhere.md)", "nowhere.md", id="page"),
        pytest.param("[gone](serving.md#nowhere)", "#nowhere", id="anchor"),
        pytest.param("The loop has a backend.", "'backend' should be 'back end, denoiser'", id="word"),
    ],
)
def test_what_is_wrong_fails(text, reason, tmp_path):
    for name in ("docs", "benchmarks", "examples", "tests"):
        wanted = shutil.ignore_patterns("results", "__pycache__", "*.npz")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=wanted)
    for name in ("mkdocs.yml", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"):
        shutil.copy(ROOT / name, tmp_path)
    page = tmp_path / "docs" / "tutorial.md"
    page.write_text(f"{page.read_text()}\n{text}\n")
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode != 0
    assert reason in done.stdout + done.stderr
