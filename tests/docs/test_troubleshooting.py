"""Every message that docs/how-to/troubleshooting.md explains is the one that a user gets."""

import re
import shutil
import socket
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import stepfuse as sf

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "troubleshooting.md"
#: A name of each message, in the order of the page.
NAMES = (
    *("steps", "class", "option", "shape", "flow", "name", "changed", "exists", "prompts", "branch", "non_finite"),
    *("rows", "queue", "deadline", "timeout", "closed", "provider", "backend", "extra", "port"),
)


def headings():
    return re.findall(r"^### `(.*)`$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)


class Wrong:
    """What a user does, a method for each message."""

    def __init__(self, tmp_path, monkeypatch):
        self.tmp_path, self.monkeypatch = tmp_path, monkeypatch
        self.engine = sf.Engine.load("fashion", verify=False)

    def own(self, network):
        return sf.Engine.from_callable(network, shape=(2,), schedule=sf.NoiseSchedule.linear())

    def steps(self):
        self.engine.sample(1, steps=0)

    def class_(self):
        self.engine.sample(1, cond="sneakers")

    def option(self):
        self.engine.sample(1, sampler="ddim", karras=True)

    def shape(self):
        self.engine.sample(1, image=np.zeros((1, 32, 32), np.float32))

    def flow(self):
        sf.samplers.ddim(sf.NoiseSchedule.flow(), steps=5)

    def name(self):
        sf.Engine.load("fashon")

    def changed(self):
        folder = shutil.copytree(sf.Bundle.load("fashion", verify=False).path, self.tmp_path / "copy")
        network = folder / "denoiser.onnx"
        network.write_bytes(network.read_bytes()[:-1] + b"\x01")
        sf.Engine.load(folder)

    def exists(self):
        (self.tmp_path / "my-model").mkdir()
        sf.write_bundle(
            self.tmp_path / "my-model", name="a", info=self.engine.info, files={}, provenance="none", licence="none"
        )

    def prompts(self):
        sf.TextToImage.load("fashion", verify=False)

    def branch(self):
        torch = pytest.importorskip("torch")
        from stepfuse.export import to_bundle

        class Branching(torch.nn.Module):
            def forward(self, x, t):
                return 2 * x if x.shape[0] > 4 else x * t[:, None, None, None]

        schedule = sf.NoiseSchedule.linear()
        to_bundle(Branching().eval(), shape=(3, 8, 8), schedule=schedule, out=self.tmp_path / "out")

    def non_finite(self):
        self.own(lambda x, t, cond: x * np.float32(np.nan)).sample(1, steps=5)

    def rows(self):
        self.own(lambda x, t, cond: x[:, :1]).sample(1, steps=5)

    def queue(self):
        with sf.Engine.load("fashion", verify=False, serving=sf.Serving(max_queue=1, max_running=1)) as engine:
            try:
                for _ in range(50):
                    engine.submit(sf.Request(steps=1000))
            finally:
                engine.close(abort=True)

    def deadline(self):
        self.engine.calibrate()
        self.engine.submit(sf.Request(steps=1000, deadline=time.monotonic() + 0.3))

    def timeout(self):
        self.engine.submit(sf.Request(steps=1000, timeout=0.05)).result()

    def closed(self):
        self.engine.close()
        self.engine.submit(sf.Request())

    def provider(self):
        sf.Engine.load("fashion", device="cuda", verify=False)

    def backend(self):
        sf.Engine.load("fashion", backend="tensorrt", verify=False)

    def extra(self):
        if hasattr(sf, "server"):  # importing it again sets it; other tests need the modules that they have
            self.monkeypatch.setattr(sf, "server", sf.server)
        for name in [name for name in sys.modules if name.startswith("stepfuse.server")]:
            self.monkeypatch.delitem(sys.modules, name)
        self.monkeypatch.setitem(sys.modules, "fastapi", None)
        from stepfuse.server import create_app

        create_app({"fashion": self.engine})

    def port(self):
        from stepfuse.server.run import serve

        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
            serve(None, port=port, abort=lambda: None, started=print)


def test_every_message_has_a_case():
    assert len(headings()) == len(NAMES)


@pytest.mark.parametrize(("name", "message"), zip(NAMES, headings(), strict=False), ids=NAMES)
def test_the_message_is_what_a_user_gets(name, message, tmp_path, monkeypatch):
    wrong = Wrong(tmp_path, monkeypatch)
    with pytest.raises(Exception) as caught:  # noqa: PT011
        getattr(wrong, "class_" if name == "class" else name)()
    wrong.engine.close(abort=True)
    assert re.search(pattern_of(message), str(caught.value)), str(caught.value)


def pattern_of(message):
    """Of a message: numbers and digests stand for any, and dots for what is left out."""
    parts = re.split(r"(\.\.\.|[0-9a-f]{6}\b|\d+(?:\.\d+)?)", message)
    return "".join(re.escape(part) if i % 2 == 0 else r"[\s\S]*?" for i, part in enumerate(parts))
