"""What a notebook shows of an object: one line, without its arrays; and pictures as pictures."""

import io
import xml.etree.ElementTree as ET
from dataclasses import replace

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
    assert repr(sf.Request(cond=np.int64(3), id="x\ny")) == rf"Request(cond={np.int64(3)!r}, id='x\ny')"
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


def cells(shown):
    """The table of a notebook, read as XML: its title, and the text of each cell by rows."""
    table = ET.fromstring(shown._repr_html_())
    return table.findtext("caption"), [["".join(cell.itertext()) for cell in row] for row in table.iter("tr")]


def test_a_notebook_shows_the_columns_of_a_table_that_are_used():
    table = sf.samplers.ddim(support.SCHEDULE, steps=4, guidance_scale=3.0)
    title, (header, *rows) = cells(table)
    assert title == "<StepTable ddim: 4 steps, 8 passes>"
    assert header == ["step", "t", "g", "p_x", "p_e", "q_d", "q_e"]
    for step, row in enumerate(rows):
        assert [float(cell) for cell in row] == pytest.approx([step, *(table[name][step] for name in header[1:])], 1e-4)


def test_a_notebook_shows_the_first_steps_and_the_last():
    _, (_, *rows) = cells(sf.samplers.ddim(support.SCHEDULE, steps=1000))
    assert [row[0] for row in rows] == ["0", "1", "2", "3", "4", "…", "995", "996", "997", "998", "999"]
    _, (_, *rows) = cells(sf.samplers.ddim(support.SCHEDULE, steps=10))
    assert [row[0] for row in rows] == [str(step) for step in range(10)]


def test_a_notebook_shows_what_an_engine_is(pipe, bundle):
    with sf.Engine.load(bundle, threads=1) as engine:
        title, rows = cells(engine)
    assert title == repr(engine).replace("closed", "up to 64 rows")
    found = dict(rows)
    assert (found["model"], found["sample"], found["predicts"]) == ("tiny", "1 x 4 x 5, -1 to 1", "epsilon")
    assert found["input class_labels"].endswith("7 classes: boot, bag, coat, dress, shirt, sandal, sneaker")
    title, rows = cells(pipe)
    assert title == repr(pipe)
    assert dict(rows)["sample"] == "4 x 4 x 4, -1 to 1"
    with support.make_engine(cond=None) as engine:
        assert [name for name, _ in cells(engine)[1]] == ["sample", "predicts", "schedule"]


def test_texts_of_a_bundle_are_text_in_a_notebook():
    script = "<script>alert('1')</script>&\x1b[31m"
    names = (script, *("x" * 500 for _ in range(20)))
    table = replace(sf.samplers.ddim(support.SCHEDULE, steps=2), sampler=script)
    cond = {script: sf.CondInput(null=len(names), names=names)}
    with support.make_engine(cond=cond) as engine:
        for shown in (table, engine):
            html = shown._repr_html_()
            assert "<script" not in html
            assert "\x1b" not in html
            assert len(html) < 5000
            assert "&lt;script&gt;" in html
            cells(shown)  # well-formed
