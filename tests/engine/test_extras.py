"""The command that messages name for an extra: of the index, or of the clone that stepfuse was installed from."""

import json
from importlib import metadata
from urllib.parse import quote

import pytest

from stepfuse.extras import pip_install


class Installed:
    """A distribution with this ``direct_url.json``."""

    def __init__(self, text):
        self._text = text

    def read_text(self, name):
        return self._text if name == "direct_url.json" else None


def command(monkeypatch, text, before=()):
    monkeypatch.setattr(metadata, "distributions", lambda name: iter([*before, Installed(text)]))
    return pip_install("export")


def test_an_installation_from_a_clone_names_the_clone(monkeypatch, tmp_path):
    clone = tmp_path / "my clone"
    clone.mkdir()
    url = json.dumps({"url": f"file://{quote(str(clone))}", "dir_info": {}})
    assert command(monkeypatch, url) == "pip install 'stepfuse[export]'"  # it is gone, or was no clone
    (clone / "pyproject.toml").touch()
    assert command(monkeypatch, url) == f"pip install '{clone}[export]'"
    left_by_a_build = Installed(None)  # in the working directory, which Python looks through first
    assert command(monkeypatch, url, [left_by_a_build]) == f"pip install '{clone}[export]'"


@pytest.mark.parametrize("text", [None, "", "{}", "no JSON", '{"url": "https://example.org/stepfuse.git"}', "[]", "1"])
def test_any_other_installation_names_the_package(monkeypatch, text):
    assert command(monkeypatch, text) == "pip install 'stepfuse[export]'"


def test_stepfuse_that_is_not_installed_names_the_package(monkeypatch):
    monkeypatch.setattr(metadata, "distributions", lambda name: iter(()))
    assert pip_install("text") == "pip install 'stepfuse[text]'"
