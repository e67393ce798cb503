"""``stepfuse fit``, and ``--table`` that takes what it writes, as a user types them."""

import json

import handmade
import numpy as np
import pytest
import support
from PIL import Image
from typer.testing import CliRunner

import stepfuse as sf
from stepfuse.cli import app

runner = CliRunner()
FEW = ["--samples", 20, "--held-out", 4, "--rounds", 1, "--steps", 2, "-g", 1]


def run(*arguments):
    return runner.invoke(app, [str(one) for one in arguments])


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return support.write_tiny_bundle(tmp_path_factory.mktemp("fit") / "tiny")


@pytest.fixture(scope="module")
def table(bundle):
    path = bundle.path.parent / "two.npz"
    result = run("fit", bundle.path, *FEW, "--no-compare", "-o", path)
    assert result.exit_code == 0, result.output
    assert f"; written to {path}" in result.output
    assert not path.with_name("two.npz.partial").exists()
    shown = run("info", path).output
    assert "2 rows of 16 numbers, registers: 1" in shown
    assert "fitted-2" in shown
    return path


def test_what_it_writes_is_what_the_call_gives(bundle, table):
    with sf.Engine.load(bundle.path) as engine:
        expected = sf.fit(engine, 2, guidance_scale=1.0, samples=20, held_out=4, rounds=1)
    np.testing.assert_array_equal(sf.StepTable.load(table).rows, expected.rows)


def test_it_is_compared_with_samplers_made_by_hand(bundle, tmp_path):
    result = run("fit", bundle.path, *FEW, "-o", tmp_path / "two.npz", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["options"]["steps"] == 2
    assert {"fitted-2"} < {one["name"] for one in found["compared"]}
    assert [one["error"] for one in found["compared"]] == sorted(one["error"] for one in found["compared"])


def test_a_table_is_sampled(bundle, table, tmp_path):
    path = tmp_path / "samples.npy"
    result = run("sample", bundle.path, "-n", 3, "--cond", "bag", "--table", table, "-o", path)
    assert result.exit_code == 0, result.output
    assert "fitted-2, 2 steps" in result.output
    with sf.Engine.load(bundle.path) as engine:
        expected = engine.sample(3, cond="bag", table=sf.StepTable.load(table), seed=0)
    np.testing.assert_array_equal(np.load(path), expected)
    assert run("interpolate", bundle.path, "-n", 2, "--table", table, "-o", tmp_path / "walk.png").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", 3], "--table says all about the sampler: leave out --steps"),
        (["--karras"], "--table says all about the sampler: leave out --karras"),
        (["--sampler", "ddim", "--eta", 1], "--table says all about the sampler: leave out --sampler, --eta"),
    ],
)
def test_a_table_says_all_about_the_sampler(bundle, table, tmp_path, arguments, message):
    result = run("sample", bundle.path, "--table", table, *arguments, "-o", tmp_path / "one.png")
    assert result.exit_code == 2
    assert message in result.output


def test_bad_tables_and_outputs_are_refused(bundle, tmp_path):
    missing = run("sample", bundle.path, "--table", tmp_path / "no.npz", "-o", tmp_path / "one.png")
    assert (missing.exit_code, missing.output) == (1, f"stepfuse: {tmp_path / 'no.npz'}: No such file or directory\n")
    other = run("fit", bundle.path, *FEW, "-o", tmp_path / "table.png")
    assert other.exit_code == 2
    assert "--output must end in .npz, got 'table.png'" in other.output
    pipe = run("fit", bundle.path, *FEW, "-o", "-")
    assert (pipe.exit_code, "--output must name a file" in pipe.output) == (2, True)
    (tmp_path / "there.npz").write_text("precious")
    there = run("fit", bundle.path, *FEW, "-o", tmp_path / "there.npz")
    assert there.exit_code == 1
    assert "--force" in there.output
    assert (tmp_path / "there.npz").read_text() == "precious"


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return handmade.write_bundle(tmp_path_factory.mktemp("prompts") / "bundle")


def test_prompts_are_fitted_to_and_a_prompt_is_sampled(pipeline, tmp_path):
    """A fitted table of a pipeline: what the command writes is what the calls give."""
    table, picture = tmp_path / "two.npz", tmp_path / "cat.png"
    words = ["--prompt", "a red cat", "--prompt", "a dog", "--negative-prompt", "rain"]
    result = run("fit", pipeline.path, *FEW[:-1], 3, *words, "--no-compare", "-o", table)
    assert result.exit_code == 0, result.output
    with sf.TextToImage.load(pipeline) as pipe, sf.Engine.load(pipeline) as engine:
        prompts = ["a red cat", "a dog"] * 12
        given = pipe.conditioning(prompts, negative_prompt="rain")
        expected = sf.fit(engine, 2, guidance_scale=3.0, samples=20, held_out=4, rounds=1, **given)
        np.testing.assert_array_equal(sf.StepTable.load(table).rows, expected.rows)
        result = run("sample", pipeline.path, "--prompt", "a dog", "--table", table, "--seed", 4, "-o", picture)
        assert result.exit_code == 0, result.output
        want = pipe("a dog", seed=4, table=expected)
    with Image.open(picture) as got:
        np.testing.assert_array_equal(np.asarray(got), np.asarray(want[0]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "draws what a prompt says: give --prompt or --prompt-file"),
        (["--prompt", "a cat", "--negative-prompt", "rain"], "--negative-prompt needs guidance"),
        (["--prompt", "a cat", "--cond", "bag"], "--cond is for models with classes"),
    ],
)
def test_prompts_that_have_no_effect_or_are_missing_are_refused(pipeline, tmp_path, arguments, message):
    result = run("fit", pipeline.path, *FEW, *arguments, "-o", tmp_path / "two.npz")
    assert result.exit_code == 2
    assert message in result.output


def test_a_table_is_added_to_a_folder(tmp_path):
    bundle = support.write_tiny_bundle(tmp_path / "tiny")
    result = run("fit", bundle.path, *FEW, "--no-compare", "--add")
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny", "tiny.onnx"]
    sampled = run("sample", bundle.path, "-n", 2, "--sampler", "fitted-2", "-g", 1, "-o", tmp_path / "two.npy")
    assert sampled.exit_code == 0, sampled.output
    again = run("fit", bundle.path, *FEW, "--no-compare", "--add")
    assert (again.exit_code, "fitted-2-1.npz is there already: give --force" in again.output) == (1, True)
    assert run("fit", bundle.path, *FEW, "--no-compare", "--add", "--seed", 3, "--force").exit_code == 0
    [table] = sf.Bundle.load(bundle.path).info.tables.values()
    assert table.options["seed"] == 3
    embedded = run("fit", "fashion", *FEW, "--add")
    assert (embedded.exit_code, "comes with the package: use --output" in embedded.output) == (2, True)
    neither = run("fit", bundle.path, *FEW)
    assert (neither.exit_code, "give --output, for a file, or --add" in neither.output) == (2, True)
