"""Names, ids and texts that others chose: shown on one line, wherever they are shown."""

import csv
import io
import logging
import re
import unicodedata

import numpy as np
import pytest
import support
from PIL import Image
from typer.testing import CliRunner

import stepfuse as sf
from stepfuse.analysis.figures.style import cond_suffix
from stepfuse.analysis.report.page import page
from stepfuse.analysis.report.tables import as_csv, as_markdown, markdown, write_text
from stepfuse.cli.app import app
from stepfuse.display import byte_size, encodable, printable
from stepfuse.pipeline.image_files import image_grid, save_png

#: ANSI sequences, a C1 introducer, line breaks of four kinds, an override, a zero-width space, half a pair, marks.
HOSTILE = "\x1b[31mred\x1b]0;t\x07\x9b2J\r\nnext\u2028\u2029\x85\u202egnp\u200b\x7f\ud800 [bold]:b: <img src=x> | $x_1$"


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (999, "999 bytes"),
        (1000, "1 kB"),
        (13_210, "13.2 kB"),
        (999_499, "999 kB"),
        (999_999, "1 MB"),
        (4_000_000, "4 MB"),
        (1_059_999_999, "1.06 GB"),
        (10**15, "1 PB"),
        (10**21, "over 999 EB"),
        (10**400, "over 999 EB"),
    ],
)
def test_a_size_is_shown_in_the_unit_that_fits(count, shown):
    assert byte_size(count) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("Crème brûlée 猫 🦊\u3000ﬁ", "Crème brûlée 猫 🦊\u3000ﬁ"),
        ("a\nb\tc\x1b[0m", r"a\nb\tc\x1b[0m"),
        ("\x9b\x7f\x00", r"\x9b\x7f\x00"),
        ("\u202eabc\u2069\u200b\ufeff", r"\u202eabc\u2069\u200b\ufeff"),
        ("\u2028\u2029\x85", r"\u2028\u2029\x85"),
        ("\ud800", r"\ud800"),
        ("\U000e0041", r"\U000e0041"),
        (ValueError("two\nlines"), r"two\nlines"),
    ],
)
def test_what_acts_on_a_terminal_is_escaped(text, shown):
    assert printable(text) == shown


def test_every_character_is_shown_or_escaped():
    for number in range(0x110000):
        character = chr(number)
        escaped = unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")
        if escaped or number < 0x3000:
            assert (printable(character) != character) == escaped, hex(number)


def test_long_texts_are_cut():
    assert printable("x" * 10, 10) == "x" * 10
    assert printable("x" * 11, 10) == "x" * 9 + "…"


def test_files_keep_a_text_but_for_what_they_cannot_hold():
    assert encodable("a\nb\ud800猫") == "a\nb\\ud800猫"


def is_clean(text, *, lines=0):
    """Whether a text has nothing hostile in it, and so many line breaks."""
    return text.count("\n") == lines and printable(text.replace("\n", "")) == text.replace("\n", "")


def test_a_request_id_forges_no_log_line(caplog):
    caplog.set_level(logging.DEBUG, logger="stepfuse")

    def fail(x, t, cond):
        raise ValueError(HOSTILE)

    with support.make_engine(fail) as engine:
        future = engine.submit(sf.Request(cond="boot", steps=2, seed=1, id=HOSTILE))
        with pytest.raises(ValueError, match="red"):
            future.result()
    assert caplog.records
    for record in caplog.records:
        assert is_clean(record.getMessage())
        assert is_clean(record.request_id)
    assert any("red" in record.request_id for record in caplog.records)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    names = (HOSTILE.replace("\ud800", ""), "=1+1", *support.NAMES[2:])  # no manifest has half a pair
    cond = {"class_labels": sf.CondInput(dtype="int64", null=support.NULL, names=names)}
    return support.write_tiny_bundle(tmp_path_factory.mktemp("hostile") / "bundle", cond=cond)


@pytest.mark.parametrize(
    "arguments",
    [
        ["info"],
        ["sample", "-n", "1", "--steps", "2", "--cond", HOSTILE.replace("\ud800", "?")],
        ["sample", "-n", "2", "--steps", "2"],
        ["interpolate", "-n", "2", "--steps", "2", "--cond", "0"],
    ],
    ids=["info", "an unknown class", "classes as captions", "a walk"],
)
def test_the_command_line_shows_names_on_one_line_without_markup(bundle, tmp_path, arguments):
    command, *options = arguments
    written = [] if command == "info" else ["-o", str(tmp_path / "out.png")]
    result = CliRunner().invoke(app, [command, str(bundle.path), *options, *written])
    assert "Traceback" not in result.output
    for line in result.output.splitlines():
        assert is_clean(line)
    if command == "info" or len(options[-1]) > 9:
        assert "[bold]:b:" in "".join(result.output.split())


def record(**changes):
    machine = {"processor": HOSTILE, "cores": 2, "instructions": "avx2", "system": "Linux"}
    return {
        "experiment": "paths",
        "title": "Paths",
        "question": "What?",
        "date": "2026-01-01T00:00:00",
        "machine": machine,
        "versions": {"numpy": "2"},
        "judged_by": HOSTILE,
        "quick": False,
        "findings": [f"{HOSTILE}: **does not hold**."],
        "rows": [{"label": HOSTILE, "mse": 0.5}],
        "settings": {"cond": HOSTILE, "seed": 0},
        "seed": 0,
        "seconds": 1.0,
        **changes,
    }


def test_a_report_shows_names_as_text():
    text = page([record()], HOSTILE)
    assert "<img" not in text
    assert "&lt;img src=x&gt; \\| \\$x_1\\$: **does not hold**." in text
    assert is_clean(text, lines=text.count("\n"))
    assert page([record(skipped=HOSTILE)], "m").count("&lt;img") == 3  # processor, judge, reason


@pytest.mark.parametrize(
    "text", ["*bold*", "_it_", "[a](http://b)", "`c`", "![x](y)", "<!-- -->", "~~s~~", "&lt;", "# one"]
)
def test_markdown_has_no_marks_left(text):
    bare = re.sub(r"\\[^a-z\s]|&(lt|gt|amp);", "", markdown(text))
    assert not set(bare) & set("*_[]`<>~&")
    assert not bare.startswith("#")
    assert markdown("ddpm_strided, 50 steps: 0.5 (best)") == "ddpm_strided, 50 steps: 0.5 (best)"


@pytest.mark.parametrize("text", ["=cmd|' /C calc'!A0", "+1", "-1", "@SUM(A1)", "\uff1d1"])
def test_cells_are_no_formulas(text):
    [_, [cell, number, pair]] = csv.reader(io.StringIO(as_csv([{"name": text, "number": -1.5, "pair": [-1.0, 1.0]}])))
    assert (cell, number, pair) == (f"'{text}", "-1.5", "-1.0 to 1.0")


def test_tables_hold_a_row_a_line(tmp_path):
    rows = [{"name": HOSTILE, "mse": 1.0}]
    assert is_clean(as_csv(rows), lines=2)
    assert is_clean(as_markdown(rows), lines=3)
    assert as_markdown(rows).splitlines()[2].replace("\\|", "").count("|") == 3
    write_text(tmp_path / "text", HOSTILE)  # half a pair does not lose the file
    assert "\\ud800" in (tmp_path / "text").read_text()


def test_a_name_in_a_figure_is_no_formula():
    figure_module = pytest.importorskip("matplotlib.figure")
    figure = figure_module.Figure()
    title = figure.suptitle("one noise" + cond_suffix("price $5 and $\\frac{"))
    figure.canvas.draw()  # raises where that is read as a formula
    assert title.get_text().count(r"\$") == 2
    assert is_clean(cond_suffix(HOSTILE))


def test_pictures_with_hostile_names_are_written(tmp_path):
    picture = image_grid(
        np.zeros((2, 1, 4, 4), np.float32), [HOSTILE, ""], title=HOSTILE, data_range=(-1, 1), columns=2
    )
    save_png(picture, tmp_path / "grid.png", {"Description": HOSTILE, "prompt": "two\nlines"})
    with Image.open(tmp_path / "grid.png") as read:
        assert read.text == {"Description": encodable(HOSTILE), "prompt": "two\nlines"}
