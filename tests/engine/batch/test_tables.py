"""Tables of requests: what is read of each kind of file, and rows as requests."""

import csv
import json
import math

import pytest

from stepfuse.batch.rows import COLUMNS, Row, request_of, seed_of
from stepfuse.batch.tables import count_rows, read_rows

ROWS = [
    {"id": "a", "prompt": "bag", "steps": 4, "seed": 7, "guidance_scale": 2.5},
    {"id": "b", "prompt": "coat", "seed": (1 << 64) - 1, "sampler": "dpmpp_2m", "sampler_options": {"karras": True}},
    {"id": "c", "prompt": "boot", "negative_prompt": "bag", "size": "28x28", "eta": 0.5},
]


def write(path, rows):
    """The same rows in any kind of file."""
    if path.suffix == ".parquet":
        pa = pytest.importorskip("pyarrow")
        import pyarrow.parquet as pq

        seeds = pa.array([row.get("seed") for row in rows], pa.uint64())
        options = [json.dumps(row["sampler_options"]) if "sampler_options" in row else None for row in rows]
        names = [name for name in COLUMNS if name not in ("seed", "sampler_options")]
        columns = {name: [row.get(name) for row in rows] for name in names}
        pq.write_table(pa.table({**columns, "seed": seeds, "sampler_options": options}), path, row_group_size=2)
    elif path.suffix == ".csv":
        texts = {"sampler_options": json.dumps}
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows({name: texts.get(name, str)(one) for name, one in row.items()} for row in rows)
    else:
        path.write_text("\n\n".join(map(json.dumps, rows)), encoding="utf-8")  # blank lines are none
    return path


@pytest.mark.parametrize("suffix", ["jsonl", "ndjson", "csv", "parquet"])
def test_every_kind_of_table_asks_for_the_same(suffix, tmp_path):
    table = write(tmp_path / f"requests.{suffix}", ROWS)
    expected = [request_of(Row(number, fields)) for number, fields in enumerate(ROWS)]
    found = list(read_rows(table))
    assert [request_of(row) for row in found] == expected
    assert count_rows(table) == 3
    for start in range(4):
        assert [row.number for row in read_rows(table, start, 3)] == list(range(start, 3))
        assert [row.id for row in read_rows(table, start, start + 1)] == ["a", "b", "c"][start : start + 1]
    assert [expected[1].seed, expected[2].width, expected[0].steps] == [(1 << 64) - 1, 28, 4]


def test_a_row_without_a_seed_has_one_of_its_id():
    assert seed_of("order-17") == 0x72A90EA3DA8B5DD0 >> 11  # of sha256sum
    seeds = {request_of(Row(number, {})).seed for number in range(100)}
    assert len(seeds) == 100
    assert request_of(Row(3, {"id": "x"})).seed == request_of(Row(9, {"id": "x", "seed": None})).seed == seed_of("x")


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"prmpt": "bag"}, "'prmpt' is no column of requests (did you mean prompt?)"),
        ({"n": 2}, "'n' is no column of requests"),
        ({"seed": "7.5"}, "seed must be a whole number, got '7.5'"),
        ({"seed": True}, "seed must be a whole number, got True"),
        ({"steps": [4]}, "steps must be a whole number, got [4]"),
        ({"steps": 4, "num_inference_steps": 5}, "steps and num_inference_steps are one: give one of them, got 4"),
        ({"guidance_scale": "much"}, "guidance_scale must be a number, got 'much'"),
        ({"prompt": 1.5}, "prompt must be a text, got 1.5"),
        ({"size": "28"}, "size must be WIDTHxHEIGHT in pixels, or auto, got '28'"),
        ({"sampler_options": "[1]"}, "sampler_options must be an object, got '[1]'"),
        ({"sampler_options": "{"}, "sampler_options must be an object, as JSON, got '{'"),
        ({"sampler_options": {"steps": 4}}, "sampler_options must not hold steps, which is a field of its own"),
    ],
)
def test_a_row_is_refused_with_the_rule_and_the_value(fields, rule):
    with pytest.raises(ValueError, match=r"^") as refused:
        request_of(Row(0, fields))
    assert rule in str(refused.value)


def test_what_is_left_out_and_what_is_kept():
    row = Row(0, {"prompt": None, "steps": math.nan, "seed": 7.0, "label": 3, "sampler_options": {"clip": None}})
    request = request_of(row, keep=("label",))
    assert (request.prompt, request.steps, request.seed, request.options) == (None, None, 7, {})


def test_lines_that_are_no_objects_are_rows_that_fail(tmp_path):
    table = tmp_path / "requests.jsonl"
    table.write_bytes(
        b'\xef\xbb\xbf{"id": "a"}\n[1]\n{"id"\n{"id": "b", "id": "c"}\n"\xff"\n' + b"9" * (1 << 21) + b"\n{}"
    )
    rows = list(read_rows(table))
    assert [row.error is None for row in rows] == [True, False, False, False, False, False, True]
    assert rows[1].error == "a line must be an object of JSON: it is [1]"
    assert rows[5].error == "a line must be an object of JSON: it is longer than 1,048,576 bytes"
    assert count_rows(table) == 7


def test_a_csv_row_of_too_many_cells_fails_alone(tmp_path):
    table = tmp_path / "requests.csv"
    table.write_text('prompt,seed\nbag,1\nbag,2,3\n"bag, red",\n', encoding="utf-8")
    first, second, third = read_rows(table)
    assert first.fields == {"prompt": "bag", "seed": "1"}
    assert second.error == "a row must have 2 cells, got ['3'] more"
    assert third.fields == {"prompt": "bag, red"}


def test_a_table_of_another_kind_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"ends in \.jsonl, \.ndjson, \.csv, \.parquet, got 'requests\.txt'"):
        next(read_rows(tmp_path / "requests.txt"))
    (tmp_path / "latin.csv").write_bytes(b"prompt\n\xff\n")
    with pytest.raises(ValueError, match=r"must be a CSV file in UTF-8, .*latin\.csv is not"):
        list(read_rows(tmp_path / "latin.csv"))
