"""What docs have a client do works as it stands there."""

import re
from pathlib import Path

import http_service
import pytest
from PIL import Image

import stepfuse as sf

pytest.importorskip("fastapi", reason="needs the extra serve")
pytest.importorskip("openai", reason="needs OpenAI's client")

from stepfuse.server import create_app

DOCS = Path(__file__).parents[3] / "docs"
PAGES = (DOCS / "tutorial.md", DOCS / "how-to" / "serve.md", DOCS / "http.md")


def test_the_clients_of_the_page_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    with sf.Engine.load("fashion-8step") as engine, http_service.served(create_app({"fashion": engine})) as service:
        for page in PAGES:
            for code in re.findall(r"^```py\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
                exec(code.replace("http://127.0.0.1:8000", service.url), names)
    assert Image.open("sneaker.png").size == (28, 28)
    assert capsys.readouterr().out.splitlines()[-1] == "image_generation.completed 28x28"
