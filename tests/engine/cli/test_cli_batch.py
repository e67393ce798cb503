"""``stepfuse batch``: what it writes and says, and how it ends."""

import json

import handmade
import pytest
import support
from PIL import Image
from typer.testing import CliRunner

from stepfuse.cli import app


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return support.write_tiny_bundle(tmp_path_factory.mktemp("batch") / "tiny").path


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": "bag", "steps": 2}, {"prompt": "coat", "steps": 3, "seed": 4}]
    (tmp_path / "requests.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(app, ["batch", *map(str, arguments)])


def test_a_job_is_reported_and_gone_on_with(bundle, here):
    result = run("requests.jsonl", "--model", bundle, "-o", "out", "--json")
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert {name: said[name] for name in ("folder", "rows", "drawn", "kept", "failed")} == {
        **{"folder": "out", "rows": 2, "drawn": 2, "kept": 0, "failed": 0}
    }
    again = run("requests.jsonl", "--model", bundle, "-o", "out")
    assert again.exit_code == 0
    assert "0 drawn in " in again.output
    assert "2 were there already: out\n" in again.output
    records = [json.loads(line) for line in (here / "out" / "000000.jsonl").read_text().splitlines()]
    assert [(record["id"], record["steps"], record["prompt"]) for record in records] == [
        ("0", 2, "bag"),
        ("1", 3, "coat"),
    ]
    assert Image.open(here / "out" / records[1]["file"]).info["seed"] == "4"


def test_rows_that_fail_are_said_and_end_with_one(bundle, here):
    (here / "requests.csv").write_text("id,prompt\na,bag\nb,hat\nc,cap\n", encoding="utf-8")
    result = run("requests.csv", "-m", bundle, "-o", "out", "--quiet")
    assert result.exit_code == 1
    assert "stepfuse: 2 of 3 rows failed, first row 1 (id b): prompt must be one of boot, bag, " in result.output
    assert "got 'hat'; --retry-failed draws them again" in result.output
    again = run("requests.csv", "-m", bundle, "-o", "out", "--retry-failed")
    assert again.exit_code == 1
    assert "0 drawn in " in again.output
    assert "1 were there already" in again.output


def test_a_table_of_prompts_is_drawn_as_the_pipeline_draws_them(here):
    pipeline = handmade.write_bundle(here / "pipeline")
    (here / "prompts.csv").write_text(
        "id,prompt,size,seed\na,a red cat,12x8,3\nb,a blue dog,,4\nc,,,5\n", encoding="utf-8"
    )
    result = run("prompts.csv", "-m", pipeline.path, "-o", "out", "--format", "webdataset", "--image-format", "webp")
    assert result.exit_code == 0, result.output
    records = [json.loads(line) for line in (here / "out" / "000000.jsonl").read_text().splitlines()]
    assert [(record["size"], record["seed"], record["file"]) for record in records] == [
        *[("12x8", 3, "000000.tar"), ("8x8", 4, "000000.tar"), ("8x8", 5, "000000.tar")]
    ]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (
            ["requests.jsonl", "-o", "out", "--format", "zip"],
            2,
            "--format must be one of files, webdataset, parquet, got 'zip'",
        ),
        (["requests.jsonl", "-o", "out", "--actors", "2"], 2, "--actors is for --ray, which says where: leave it out"),
        (["requests.txt", "-o", "out"], 2, "requests must be a table that ends in .jsonl"),
        (["none.jsonl", "-o", "out"], 1, "none.jsonl: No such file or directory"),
        (["requests.jsonl", "-o", "."], 1, "is not empty and holds no job: name another folder, or give --force"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_drawn(arguments, code, message, here):
    result = run(*arguments)
    assert result.exit_code == code
    assert message in result.output
    assert not (here / "out" / "000000.jsonl").exists()
