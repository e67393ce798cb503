"""A job's folder: every row once, whatever ends the job and however often it is begun again."""

import io
import itertools
import json
import signal
import subprocess
import sys
import tarfile
from concurrent.futures import Future

import numpy as np
import pytest
import support
from PIL import Image

import stepfuse as sf
from stepfuse.batch.drawing import in_order
from stepfuse.batch.job import Job, Tally
from stepfuse.batch.parts import read_records
from stepfuse.batch.rows import seed_of
from stepfuse.pipeline.pictures import to_pixels
from stepfuse.server import ClassModel

FORMATS = ["files", "webdataset", "parquet"]
BAD = 5  # the row that fails


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return support.write_tiny_bundle(tmp_path_factory.mktemp("batch") / "tiny", data_range=(-1.0, 1.0)).path


def write_requests(path, count=12, **bad):
    """Rows of all classes; one has a step count that there is not, or what ``bad`` says."""
    rows = [{"id": f"r-{i}", "prompt": support.NAMES[i % 7], "steps": 3 + i % 2, "label": i} for i in range(count)]
    rows[BAD] |= bad or {"steps": 0}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def make_job(bundle, tmp_path, format="files", **changed):
    table = tmp_path / "requests.jsonl"
    settings = {"model": str(bundle), "format": format, "part_rows": 5, "keep": ("label",), "deterministic": True}
    requests = table if table.exists() else write_requests(table)
    return Job(**{"requests": requests, "folder": tmp_path / "out", "max_rows": 8, **settings, **changed})


def run(job, *, force=False, **options):
    with job.opened(force=force), job.drawer() as drawer:
        return sum(job.run(drawer, **options), Tally())


def read(job):
    """All that a job has written: records and pictures by row."""
    records = {one.record["row"]: one.record for one in job_records(job)}
    assert len(records) == len(list(job_records(job)))
    images = {}
    for row, record in records.items():
        if record["error"]:
            assert record["file"] is None
            continue
        file = job.folder / record["file"]
        if job.format == "files":
            images[row] = file.read_bytes()
        elif job.format == "webdataset":
            with tarfile.open(file) as tar:
                images[row] = tar.extractfile(f"{row:09}.png").read()
                assert json.load(tar.extractfile(f"{row:09}.json")) == record
        else:
            import pyarrow.parquet as pq

            [found] = [one for one in pq.read_table(file).to_pylist() if one["row"] == row]
            images[row] = found["image"]
            assert (found["seed"], found["id"], found["label"]) == (record["seed"], record["id"], str(record["label"]))
    return records, images


def job_records(job):
    for file in sorted(job.folder.glob("??????.jsonl")):
        yield from read_records(file)


def files_of(job):
    return {path.relative_to(job.folder): path.stat().st_mtime_ns for path in job.folder.rglob("*.*")}


@pytest.mark.parametrize("format", FORMATS)
def test_a_job_draws_each_row_as_the_engine_does(format, bundle, tmp_path):
    job = make_job(bundle, tmp_path, format)
    tally = run(job)
    failure = "row 5 (id r-5): steps must be between 1 and 1000, got 0"
    assert tally == Tally(drawn=11, failed=1, failure=failure)
    records, images = read(job)
    assert list(records) == list(range(12))
    with sf.Engine.load(bundle, max_rows=8, deterministic=True) as engine:
        for row, file in images.items():
            record = records[row]
            assert (record["id"], record["seed"], record["label"]) == (f"r-{row}", seed_of(f"r-{row}"), row)
            sample = engine.sample(cond=record["prompt"], steps=record["steps"], seed=record["seed"])
            pixels = (to_pixels(sample, (-1.0, 1.0))[0, ..., 0] * 255).round().astype(np.uint8)
            np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(file))), pixels)
    before = files_of(job)
    assert run(job) == Tally(kept=11, failed=1, failure=failure)
    changed = [path.name for path, time in files_of(job).items() if before.get(path) != time]
    assert changed == ["job.json"]


#: Where a job is killed: at which call of what, and how many pictures are listed as written by then, at least.
KILLS = {
    "files, before a picture is listed": ("files", "stepfuse.batch.parts.line_of", 8, 1),
    "a shard, before its rename": ("webdataset", "stepfuse.batch.shards.sync", 3, 5),
    "parquet, after its rename": ("parquet", "stepfuse.batch.parts.write_atomically", 2, 5),
}


@pytest.mark.parametrize("kill", KILLS)
def test_a_job_that_was_killed_goes_on(kill, bundle, tmp_path):
    format, target, call, kept = KILLS[kill]
    whole = make_job(bundle, tmp_path, format, folder=tmp_path / "whole")
    run(whole)
    job = make_job(bundle, tmp_path, format)
    code = f"""
import os, sys
from unittest import mock
from pathlib import Path
from stepfuse.batch.job import Job, Tally
import stepfuse.batch.parts, stepfuse.batch.shards
job = Job(requests=Path({str(job.requests)!r}), folder=Path({str(job.folder)!r}), model={job.model!r},
          format={format!r}, part_rows=5, keep=("label",), deterministic=True, max_rows=8)
calls = []
def die(*args, real={target}, **more):
    calls.append(args)
    if len(calls) == {call}:
        if {format!r} == "files":  # a line that is torn
            open({str(job.folder / "000000.partial.jsonl")!r}, "a").write('{{"row": 1, "er')
        os.kill(os.getpid(), 9)
    return real(*args, **more)
with job.opened(), job.drawer() as drawer, mock.patch({target!r}, die):
    sum(job.run(drawer), Tally())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    listed = {row for file in job.folder.glob("*.jsonl") for row in rows_with_pictures(file)}
    before = files_of(job)
    tally = run(job)
    assert (tally.drawn, tally.kept, tally.failed) == (11 - len(listed), len(listed), 1)
    assert len(listed) >= kept
    assert read(job)[0].keys() == read(whole)[0].keys()
    assert read(job)[1] == read(whole)[1]
    if format == "files":
        unchanged = {
            path.stem for path, time in files_of(job).items() if path.suffix == ".png" and before.get(path) == time
        }
        assert unchanged >= {f"{row:09}" for row in listed}
    assert not list(job.folder.rglob("*partial*"))


def rows_with_pictures(file):
    return [one.record["row"] for one in read_records(file) if one.error is None]


@pytest.mark.parametrize("format", FORMATS)
def test_failed_rows_are_drawn_again_when_asked_for(format, bundle, tmp_path, monkeypatch):
    job = make_job(bundle, tmp_path, format)
    write_requests(job.requests, seed=1)  # nothing is wrong with it
    real = ClassModel.submit

    def fail_once(model, request):
        if request.id == "r-5":
            raise sf.errors.DenoiserError("the network returned NaN at step 2")
        return real(model, request)

    with monkeypatch.context() as patched:
        patched.setattr(ClassModel, "submit", fail_once)
        assert run(job).failed == 1
    first = read(job)[1]
    before = files_of(job)
    assert run(job, retry_failed=True) == Tally(drawn=1, kept=11)
    records, images = read(job)
    assert {row: images[row] for row in first} == first
    assert len(images) == 12
    assert [record["error"] for record in records.values()] == [None] * 12
    untouched = [path for path in before if path.name.startswith(("000000", "000002"))]
    assert untouched
    assert all(files_of(job)[path] == before[path] for path in untouched)
    assert run(job, retry_failed=True) == Tally(kept=12)


def test_the_folder_of_another_job_is_refused(bundle, tmp_path):
    job = make_job(bundle, tmp_path)
    run(job)
    with pytest.raises(
        FileExistsError, match=r"holds another job, of format 'files': name another folder, or give --f"
    ):
        run(make_job(bundle, tmp_path, "parquet"))
    other = write_requests(tmp_path / "others.jsonl", count=7)
    with pytest.raises(FileExistsError, match=r"holds another job, of requests '[0-9a-f]{64}'"):
        run(make_job(bundle, tmp_path, requests=other))
    (job.folder / "mine.txt").touch()
    run(make_job(bundle, tmp_path, requests=other), force=True)
    assert {path.name for path in job.folder.iterdir()} == {
        *("job.json", "mine.txt", "000000", "000000.jsonl", "000001", "000001.jsonl")
    }
    (job.folder / "job.json").unlink()
    with pytest.raises(FileExistsError, match=r"is not empty and holds no job"):
        run(job)


def test_two_processes_do_not_write_to_one_folder(bundle, tmp_path):
    job = make_job(bundle, tmp_path)
    with job.opened(), pytest.raises(BlockingIOError, match=r"is being written to by another job"), job.opened():
        pass


def test_a_closed_engine_ends_the_job_and_not_its_rows(bundle, tmp_path, monkeypatch):
    def refuse(*_):
        raise sf.errors.EngineClosed("the engine is closed")

    job = make_job(bundle, tmp_path)
    monkeypatch.setattr(ClassModel, "submit", refuse)
    with pytest.raises(sf.errors.EngineClosed):
        run(job)
    assert not list(job_records(job))


def test_rows_are_taken_as_room_becomes_free():
    taken, futures = [], []

    def submit(task):
        taken.append(task)
        futures.append(Future())
        if task < 3:
            futures[-1].set_result(-task)
        return futures[-1]

    found = in_order(itertools.count(), submit, 3)
    assert [next(found) for _ in range(3)] == [(0, 0), (1, -1), (2, -2)]
    assert taken == [0, 1, 2, 3, 4]
    found.close()
    assert [one.cancelled() for one in futures] == [False, False, False, True, True]


@pytest.mark.parametrize(
    ("changed", "rule"),
    [
        ({"format": "zip"}, "format must be one of files, webdataset, parquet, got 'zip'"),
        ({"image_format": "jpg"}, "image_format must be one of png, jpeg, webp, got 'jpg' (did you mean jpeg?)"),
        ({"part_rows": 0}, "part_rows must be at least 1, got 0"),
        ({"keep": ("seed",)}, "keep must name columns that neither requests nor records have, got 'seed'"),
    ],
)
def test_a_job_is_refused_with_the_rule_and_the_value(changed, rule, bundle, tmp_path):
    with pytest.raises(ValueError, match=r"^") as refused:
        make_job(bundle, tmp_path, **changed)
    assert str(refused.value) == rule
