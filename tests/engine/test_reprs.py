"""What a notebook shows of an object: one line, without its arrays; and pictures as pictures."""

import io

import handmade
import numpy as np
import pytest
import support
from PIL import Image

import stepfuse as sf
from stepfuse.display import one_line

ARRAY = np.zeros((3, 64, 64), np.float32)
BETAS = sf.NoiseSchedule.from_betas(np.linspace(1e-4, 0.02, 1000))


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    with sf.TextToImage.load(handmade.write_bundle(tmp_path_factory.mktemp("reprs") / "bundle"), threads=1) as pipe:
        yield pipe


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return support.write_tiny_bundle(tmp_path_factory.mktemp("reprs") / "tiny")


def test_every_public_object_is_one_line(pipe, bundle):
    with sf.Engine.load(bundle, threads=1) as engine:
        request = sf.Request(cond=1, steps=2, seed=0)
        shown = {
            "engine": engine,
            "table": engine.table(),
            "future": engine.submit(request),
            "stream": engine.stream(request),
            "preview": next(iter(engine.stream(request))),
            "pictures": sf.sample_pictures(engine, 4, steps=2, seed=0),
            "cost": engine.calibrate(sf.CostCurve(1e-3, 1e-4)),
        }
        provenance = shown["pictures"].provenance[0]
        shown |= {"provenance": provenance, "model": engine.model, "stats": engine.stats()}
    shown |= {
        "bundle": bundle,
        "pipeline-bundle": pipe.bundle,
        "pipeline": pipe,
        "pipeline-info": pipe.bundle.pipeline,
        "fashion": sf.Bundle.load("fashion"),
        "info": bundle.info,
        "request": sf.Request(
            cond=ARRAY, image=ARRAY, noise=ARRAY, mask=ARRAY, table=engine.table(), options={"a": ARRAY}
        ),
        "schedule": BETAS,
        "info-of-betas": sf.ModelInfo((1, 2, 2), BETAS),
        "names": sf.CondInput(null=1000, names=tuple(f"class {i}" for i in range(1000))),
        "null": sf.CondInput("float32", (3, 64, 64), null=ARRAY),
        "serving": sf.Serving(),
        "cuda": sf.Cuda(),
    }
    for name, one in shown.items():
        text = repr(one)
        assert "\n" not in text, name
        assert len(text) < 500, (name, text)
        assert "array(" not in text, name


def test_a_repr_says_what_is_not_the_default():
    assert repr(sf.Request(cond=1, image=ARRAY)) == "Request(cond=1, image=<float32 (3, 64, 64)>)"
    assert repr(sf.CondInput(null=1000, names=("a",) * 1000)) == "CondInput(null=1000, names=<1000 values>)"
    assert repr(BETAS) == "<NoiseSchedule alphas_cumprod, T = 1000>"
    assert repr(sf.Request(cond="\x1b[31m", options={"spacing": "trailing"})) == (
        r"Request(cond='\x1b[31m', options={'spacing': 'trailing'})"
    )
    assert repr(sf.Request(cond=np.int64(3), id="x\ny")) == r"Request(cond=np.int64(3), id='x\ny')"
    assert one_line(sf.Request(cond=[1] * 9)) == "Request(cond=<9 values>)"


@pytest.mark.parametrize(("number", "columns"), [(1, 1), (5, 3), (40, 6)])
def test_a_notebook_shows_pictures_as_a_small_grid(pipe, number, columns):
    pictures = pipe("a cat", num_images=number, seed=0, steps=1)
    assert (
        repr(pictures) == f"<Pictures: {number} of 8 x 8 pixels, seed{' 0' if number == 1 else f's 0 to {number - 1}'}>"
    )
    with Image.open(io.BytesIO(pictures._repr_png_())) as shown:
        rows = -(-min(number, 36) // columns)
        assert shown.size == (columns * 12 - 4, rows * 12 - 4)
        np.testing.assert_array_equal(np.asarray(shown)[:8, :8], np.asarray(pictures[0]))


def test_what_a_notebook_shows_is_bounded():
    pixels = np.random.default_rng(0).random((3, 600, 1500, 3), np.float32)
    pictures = sf.Pictures(pixels, np.zeros((3, 4, 75, 188), np.float32), [{}] * 3, [0, 1, 2])
    with Image.open(io.BytesIO(pictures._repr_png_())) as shown:
        assert max(shown.size) < 800
    assert pictures[:0]._repr_png_() is None
    assert repr(pictures[:0]) == "<Pictures: 0 of 1500 x 600 pixels>"


def test_a_grid_holds_all_pictures(pipe):
    pictures = pipe("a cat", num_images=3, seed=0, steps=1)
    grid = np.asarray(pictures.grid(2))
    assert grid.shape == (20, 20, 3)
    np.testing.assert_array_equal(grid[12:, :8], np.asarray(pictures[2]))
    assert (grid[12:, 12:] == 255).all()
    with pytest.raises(ValueError, match="a grid needs pictures and at least 1 column, got 3 and 0"):
        pictures.grid(0)
