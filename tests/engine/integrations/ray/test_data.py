"""Tables of requests in Ray Data: batches as the engine draws them, and jobs that lose workers and nodes."""

import importlib.util
import io
import json
import re
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
import pytest
import support
from PIL import Image

pa = pytest.importorskip("pyarrow")
import pyarrow.parquet as pq  # noqa: E402

import stepfuse as sf  # noqa: E402
from stepfuse.batch.job import Job, Tally  # noqa: E402
from stepfuse.batch.rows import seed_of  # noqa: E402
from stepfuse.integrations.ray import Sampler, webdataset_columns, without_written  # noqa: E402
from stepfuse.integrations.ray.data import _written_ids  # noqa: E402
from stepfuse.pipeline.pictures import to_pixels  # noqa: E402

ROOT = Path(__file__).parents[4]
ROWS = 8  # of a forward
OPTIONS = {"deterministic": True, "max_rows": ROWS, "threads": 1}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return str(support.write_tiny_bundle(tmp_path_factory.mktemp("ray") / "tiny", data_range=(-1.0, 1.0)).path)


def requests(count, **asked):
    """Rows of all classes, the last of which fails."""
    rows = [
        {"id": f"r/{i}", "prompt": support.NAMES[i % 7], "steps": 2 + i % 3, "label": i, **asked} for i in range(count)
    ]
    return [*rows[:-1], {**rows[-1], "prompt": "hat"}]


def require_drawn(bundle, table, rows):
    """Each row is there once, and its picture is what the engine draws of its seed, to the bit."""
    found = {row["id"]: row for row in table.to_pylist()}
    assert Counter(table["id"].to_pylist()) == Counter(row["id"] for row in rows)
    with sf.Engine.load(bundle, max_rows=ROWS, deterministic=True) as engine:
        good = [row for row in rows if row["prompt"] != "hat"]
        samples = engine.sample(
            len(good),
            cond=[row["prompt"] for row in good],
            steps=[row["steps"] for row in good],
            sampler=good[0].get("sampler"),
            seed=[row.get("seed", seed_of(row["id"])) for row in good],
        )
    for row, sample in zip(good, samples, strict=True):
        pixels = (to_pixels(sample[None], (-1.0, 1.0))[0, ..., 0] * 255).round().astype(np.uint8)
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(found[row["id"]]["image"]))), pixels)
        assert found[row["id"]]["error"] is None
    failed = found[rows[-1]["id"]]
    assert (failed["image"], failed["error"].partition(" must be one of ")[0]) == (None, "prompt")


def test_a_batch_becomes_pictures_and_what_draws_them_again(bundle):
    rows = requests(20)
    sampler = Sampler(bundle, keep=["label"], **OPTIONS)
    table = sampler(pa.Table.from_pylist(rows))
    nameless = sampler(pa.Table.from_pylist([{"prompt": "bag", "seed": 1, "label": 0}, {"prompt": "bag", "label": 0}]))
    sampler.close()
    require_drawn(bundle, table, rows)
    assert table["label"].to_pylist() == list(range(20))
    assert nameless.schema.equals(table.schema)
    assert nameless["id"].to_pylist() == [None, None]
    assert nameless["error"].to_pylist() == [None, "a row must have an id or a seed, got neither"]


def test_a_batch_of_another_kind_is_refused(bundle):
    sampler = Sampler(bundle)
    with pytest.raises(TypeError, match=r'must be a pyarrow\.Table, got dict: give map_batches batch_format="pyarrow"'):
        sampler({"id": np.array(["a"])})
    sampler.close()


def test_samples_of_a_shard_have_names_that_lead_nowhere(tmp_path):
    record = {"id": "../a.b", "error": None, "image": b"\x89PNG..."}
    table = webdataset_columns(pa.Table.from_pylist([record, {"id": "bad", "error": "why", "image": None}]))
    [row] = table.to_pylist()
    assert row == {"__key__": "%2E%2E%2Fa%2Eb", "png": b"\x89PNG...", "json": '{"id": "../a.b", "error": null}\n'}


def test_files_that_are_half_written_are_removed(tmp_path):
    table = pa.table({"id": ["a", "b"], "error": pa.array([None, "why"], pa.string()), "image": [b"1", None]})
    pq.write_table(table, tmp_path / "whole.parquet")
    (tmp_path / "half.parquet").write_bytes((tmp_path / "whole.parquet").read_bytes()[:-9])
    with tarfile.open(tmp_path / "whole.tar", "w") as tar:
        member = tarfile.TarInfo("c.json")
        member.size = len(content := b'{"id": "c"}')
        tar.addfile(member, io.BytesIO(content))
    (tmp_path / "half.tar").write_bytes((tmp_path / "whole.tar").read_bytes()[:1024])
    (tmp_path / "empty.tar").touch()
    assert list(_written_ids(tmp_path, retry_failed=False)) == ["a", "b", "c"]
    assert list(_written_ids(tmp_path, retry_failed=True)) == ["a", "c"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["whole.parquet", "whole.tar"]


#: What keeps a forward of eight rows going for a twentieth of a second, so that a job can be caught under way.
LONG = {"sampler": "heun", "steps": 500}


def drawn(dataset, bundle, *, batch_size, actors):
    import ray

    return dataset.map_batches(
        Sampler,
        fn_constructor_args=(bundle,),
        fn_constructor_kwargs={**OPTIONS, "keep": ["label"]},
        batch_format="pyarrow",
        batch_size=batch_size,
        compute=ray.data.ActorPoolStrategy(size=actors),
    )


@pytest.mark.slow
def test_pictures_do_not_depend_on_batches_and_actors(cluster, bundle, tmp_path):
    import ray

    rows = requests(40)
    for batch_size, actors, blocks in ((7, 1, 1), (16, 3, 4)):
        out = tmp_path / f"{batch_size}"
        drawn(
            ray.data.from_items(rows, override_num_blocks=blocks), bundle, batch_size=batch_size, actors=actors
        ).write_parquet(str(out))
        require_drawn(bundle, pq.read_table(out), rows)
    # What goes on with half of it draws the rest.
    first = sorted(out.iterdir())[0]
    first.unlink()
    left = without_written(ray.data.from_items(rows), out)
    assert 0 < left.count() < 40
    drawn(left, bundle, batch_size=8, actors=1).write_parquet(str(out))
    require_drawn(bundle, pq.read_table(out), rows)
    shards = tmp_path / "shards"
    whole = ray.data.read_parquet(str(out)).map_batches(webdataset_columns, batch_format="pyarrow")
    whole.write_webdataset(str(shards), encoder=None)
    assert without_written(ray.data.from_items(rows), shards).take_all() == [rows[-1]]


@pytest.mark.slow
def test_the_example_draws_what_is_not_there_yet(cluster, bundle, tmp_path):
    spec = importlib.util.spec_from_file_location("ray_data_example", ROOT / "examples" / "ray_data.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    rows = [{name: value for name, value in row.items() if name != "label"} for row in requests(12)]
    table, out = tmp_path / "requests.jsonl", tmp_path / "out"
    for known in (rows[:5], rows):
        table.write_text("".join(json.dumps(row) + "\n" for row in known), encoding="utf-8")
        example.main(table, out, model=bundle, actors=2)
    found = pq.read_table(out)
    assert sorted(found["id"].to_pylist()) == sorted(row["id"] for row in rows)
    assert [row["error"] is not None for row in found.sort_by("id").to_pylist()] == [
        row["prompt"] == "hat" for row in sorted(rows, key=lambda row: row["id"])
    ]


def workers(cluster, name):
    """Processes of this cluster's actors of a class."""
    for node in cluster.list_all_nodes():
        for raylet in node.all_processes["raylet"]:
            for child in psutil.Process(raylet.process.pid).children():
                if name in " ".join(child.cmdline()):
                    yield child


def lose_a_worker_and_a_node(cluster, node, name, under_way):
    """Once a job is under way one of its workers is killed, then a node with what runs on it."""
    wait_for(under_way)
    next(workers(cluster, name)).send_signal(signal.SIGKILL)
    cluster.remove_node(node, allow_graceful=False)


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.slow
def test_a_worker_and_a_node_that_are_lost_lose_no_row(cluster, bundle, tmp_path):
    import ray

    node = cluster.add_node(num_cpus=2, object_store_memory=100 << 20)
    cluster.wait_for_nodes()
    rows, out = requests(320, **LONG), tmp_path / "out"
    dataset = drawn(ray.data.from_items(rows, override_num_blocks=40), bundle, batch_size=8, actors=4)
    writing = threading.Thread(target=dataset.write_parquet, args=(str(out),))
    writing.start()
    lose_a_worker_and_a_node(cluster, node, "Sampler", lambda: len(list(out.glob("*.parquet"))) >= 2)
    assert len(list(out.glob("*.parquet"))) < 40
    writing.join()
    require_drawn(bundle, pq.read_table(out), rows)


@pytest.mark.slow
def test_a_job_on_a_cluster_writes_what_it_writes_here(cluster, bundle, tmp_path):
    from stepfuse.integrations.ray import run_job

    node = cluster.add_node(num_cpus=2, object_store_memory=100 << 20)
    cluster.wait_for_nodes()
    rows = requests(320, **LONG)
    table = tmp_path / "requests.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def job(folder, **changed):
        settings = {"model": bundle, "format": "webdataset", "part_rows": 8, "keep": ("label",), **OPTIONS}
        return Job(requests=table, folder=tmp_path / folder, **{**settings, **changed})

    here, there = job("here"), job("there")
    with here.opened(), here.drawer() as drawer:
        expected = sum(here.run(drawer), Tally())
    assert (expected.drawn, expected.failed) == (319, 1)
    losing = threading.Thread(
        target=lose_a_worker_and_a_node,
        args=(cluster, node, "PartDrawer", lambda: len(list(there.folder.glob("*.tar"))) >= 2),
    )
    losing.start()
    with there.opened():
        tally = sum(run_job(there, 320, address="auto", actors=4), Tally())
    losing.join()
    assert (tally.rows, tally.failed) == (320, 1)
    assert tally.failure == expected.failure
    files = sorted(path.name for path in here.folder.iterdir())
    assert sorted(path.name for path in there.folder.iterdir()) == files
    assert len(files) == 81
    for name in files:
        assert (here.folder / name).read_bytes() == (there.folder / name).read_bytes(), name


@pytest.mark.slow
def test_the_command_runs_a_job_there(cluster, bundle, tmp_path):
    table = tmp_path / "requests.jsonl"
    table.write_text('{"prompt": "bag"}\n{"prompt": "coat", "steps": 3}\n', encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "stepfuse",
        "batch",
        str(table),
        "-m",
        bundle,
        "-o",
        str(tmp_path / "out"),
        "--json",
    ]
    done = subprocess.run(
        [*command, "--ray", cluster.address, "--actors", "1"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("{"), done.stdout
    assert json.loads(done.stdout)["drawn"] == 2
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (again.returncode, json.loads(again.stdout)["kept"]) == (0, 2), again.stderr


@pytest.mark.slow
def test_the_page_shows_what_runs(cluster, tmp_path):
    (tmp_path / "requests.jsonl").write_text('{"id": "a", "prompt": "bag", "steps": 2}\n{"id": "b", "steps": 2}\n')
    text = (ROOT / "docs" / "ray.md").read_text(encoding="utf-8")
    [block] = [one for one in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL) if "Sampler" in one]
    for name in ("requests.jsonl", "drawn", "shards"):  # the cluster's processes are in another folder
        block = block.replace(f'"{name}"', repr(str(tmp_path / name)))
    exec(compile(block, "docs/ray.md", "exec"), {})
    assert sorted(pq.read_table(tmp_path / "drawn")["id"].to_pylist()) == ["a", "b"]
    assert list((tmp_path / "shards").glob("*.tar"))
