"""What an installed stepfuse must be able to do with its base dependencies alone; and serve, if that extra is there.

Run it with the environment's own Python, outside the clone: ``python tools/smoke.py``. It needs nothing else.
"""

import base64
import contextlib
import importlib.util
import io
import json
import re
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

import numpy as np
from PIL import Image

import stepfuse as sf

# The script beside this Python: .exe on Windows.
COMMAND = next(Path(sys.executable).parent.glob("stepfuse*"))
SECONDS = 120


def sample() -> None:
    """Every embedded model draws, the same picture for the same seed, in a batch and alone."""
    for name in sf.embedded_models():
        with sf.Engine.load(name, deterministic=True) as engine:
            images = engine.sample(3, steps=2, seed=[1, 2, 3])
            assert images.shape == (3, *engine.info.shape), images.shape
            assert np.isfinite(images).all()
            np.testing.assert_array_equal(engine.sample(1, steps=2, seed=2)[0], images[1])
            assert np.abs(images[0] - images[1]).max() > 0.1, "two seeds gave one picture"


def encode() -> None:
    """DDIM inversion: the noise that a picture comes from gives that picture again, to the method's own error."""
    with sf.Engine.load("fashion") as engine:
        images = engine.sample(2, cond="sneaker", steps=50, seed=0)
        again = engine.sample(2, cond="sneaker", steps=50, noise=engine.encode(images, cond="sneaker", steps=50))
        assert np.abs(again - images).mean() < 0.1, np.abs(again - images).mean()


def draw(folder: Path) -> None:
    """The command line writes a picture."""
    out = folder / "bag.png"
    drawn = ["sample", "fashion", "--cond", "bag", "--steps", "2", "-n", "1", "-o", str(out)]
    subprocess.run([COMMAND, *drawn], check=True, timeout=SECONDS, cwd=folder)
    with Image.open(out) as image:
        image.load()
        assert min(image.size) >= 28, image.size


def serve(folder: Path) -> None:
    """The service answers a request for a picture with one, and ends when it is asked to."""
    command = [COMMAND, "serve", "fashion", "--port", "0"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as service:
        try:
            assert service.stdout is not None
            line = service.stdout.readline()
            address = re.search(r"http://\S+", line)
            assert address, f"the service did not say where it listens: {line!r}"
            asked = urllib.request.Request(
                f"{address[0]}/v1/images/generations",
                json.dumps({"prompt": "sneaker", "seed": 7}).encode(),
                {"Content-Type": "application/json"},
            )
            with urllib.request.urlopen(asked, timeout=SECONDS) as answer:
                [picture] = json.load(answer)["data"]
            with Image.open(io.BytesIO(base64.b64decode(picture["b64_json"]))) as image:
                image.load()
        finally:
            service.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                service.wait(30)
            service.kill()


def main() -> None:
    """Runs all checks and prints what was checked."""
    sample()
    encode()
    checked = ["sample", "encode", "command line"]
    with tempfile.TemporaryDirectory() as folder:
        draw(Path(folder))
        if importlib.util.find_spec("fastapi"):
            serve(Path(folder))
            checked.append("serve")
    assert "torch" not in sys.modules, "sampling imported torch"
    python = ".".join(map(str, sys.version_info[:3]))
    print(f"stepfuse {sf.__version__} on Python {python}: {', '.join(checked)}")


if __name__ == "__main__":
    main()
