"""A bundle that is replaced: old or new for every reader, through kills and beside other writers."""

import copy
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import support

import stepfuse as sf
from stepfuse.files import atomic

WRITE = """
import sys
import support
from stepfuse.bundle.bundle import Bundle
network, target, names = sys.argv[1], sys.argv[2], sys.argv[3:]
print("ready", flush=True)
while True:
    for name in names:
        support.write_tiny_bundle(target, network=network, overwrite=True, data_range=(0, int(name)))
"""


@pytest.fixture
def bundle(tmp_path):
    return support.write_tiny_bundle(tmp_path / "tiny", data_range=(0, 1)).path


@pytest.fixture
def writer(tmp_path, bundle):
    """Starts processes that replace the bundle again and again, by bundles whose range ends in these numbers."""
    started = []

    def start(*names):
        command = [sys.executable, "-c", WRITE, tmp_path / "tiny.onnx", bundle, *map(str, names)]
        environment = {**os.environ, "PYTHONPATH": os.path.dirname(support.__file__)}  # noqa: PTH120
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
        started.append(process)
        assert process.stdout.readline() == b"ready\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def strays(bundle):
    return [path.name for path in bundle.parent.iterdir() if path.name.startswith(".")]


def test_readers_find_the_old_bundle_or_the_new_one(bundle, writer):
    process, found = writer(1, 2), set()
    end = time.monotonic() + 1.0
    while time.monotonic() < end:
        read = sf.Bundle.load(bundle)
        found.add(read.info.data_range)
        content = read.opened["denoiser.onnx"].read()
        assert len(content) == read.files["denoiser.onnx"]["size"]
    assert process.poll() is None, process.stderr.read()
    assert found == {(0, 1), (0, 2)}


def test_a_killed_writer_leaves_the_old_bundle_or_the_new_one(bundle, writer):
    rng = random.Random(5)
    for _ in range(4):
        process = writer(1, 2)
        time.sleep(rng.uniform(0.005, 0.05))
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert sf.Bundle.load(bundle).info.data_range[1] in (1, 2)
    support.write_tiny_bundle(bundle, overwrite=True)
    assert strays(bundle) == []


def test_writers_take_turns(bundle):
    def write(number):
        return support.write_tiny_bundle(
            bundle, network=bundle.with_suffix(".onnx"), overwrite=True, data_range=(0, number)
        )

    with ThreadPoolExecutor(3) as pool:
        assert {one.info.data_range[1] for one in pool.map(write, range(1, 10))} == set(range(1, 10))
    assert sf.Bundle.load(bundle).info.data_range[1] in range(1, 10)
    assert strays(bundle) == []


def test_what_a_living_writer_writes_is_left_alone(bundle):
    stale = bundle.parent / ".tiny-0123abcd.partial"
    stale.mkdir()
    (stale / "weights").write_bytes(b"half")
    with atomic.scratch_beside(bundle, folder=True) as mine:
        support.write_tiny_bundle(bundle, overwrite=True)
        assert strays(bundle) == [mine.name]


def test_a_bundle_stays_what_it_was_when_its_folder_is_replaced(bundle, tmp_path):
    before = sf.Bundle.load(bundle)
    with sf.Engine.load(before) as engine:
        wanted = engine.sample(1, cond=2, steps=2, seed=1)
    other = support.write_network(tmp_path / "other.onnx", output="wrong")
    support.write_tiny_bundle(bundle, network=other, overwrite=True)
    with pytest.raises(sf.BundleError, match="must have an output prediction"):
        sf.Engine.load(bundle)
    with sf.Engine.load(before) as engine:
        assert np.array_equal(engine.sample(1, cond=2, steps=2, seed=1), wanted)


def test_a_bundle_is_copied_and_sent_to_another_process_with_its_files(bundle):
    read = sf.Bundle.load(bundle)
    content = read.opened["denoiser.onnx"].read()
    for another in (copy.copy(read), copy.deepcopy(read), pickle.loads(pickle.dumps(read))):
        assert another.opened["denoiser.onnx"].read() == content
        del another
    assert read.opened["denoiser.onnx"].read() == content
    sent = pickle.dumps(read)
    (bundle / "denoiser.onnx").write_bytes(content[:-1] + b"x")
    with pytest.raises(sf.BundleError, match="sha256 must be"):
        pickle.loads(sent)


def test_without_renameat2_a_bundle_is_replaced_in_two_steps(bundle, monkeypatch):
    monkeypatch.setattr(atomic, "_renameat2", lambda old, new, flags: False)
    support.write_tiny_bundle(bundle, overwrite=True, data_range=(0, 7))
    assert sf.Bundle.load(bundle).info.data_range == (0, 7)
    with pytest.raises(sf.BundleError, match="exists already"):
        support.write_tiny_bundle(bundle)
    assert strays(bundle) == []


def test_a_table_is_saved_whole_or_not_at_all(tmp_path):
    table = sf.samplers.ddim(support.SCHEDULE, 5)
    table.save(tmp_path / "a.npz")
    (tmp_path / "link.npz").symlink_to("a.npz")
    broken = sf.StepTable(table.rows, options={"x": object()})
    with pytest.raises(TypeError):
        broken.save(tmp_path / "a.npz")
    assert sf.StepTable.load(tmp_path / "a.npz") == table
    table[:2].save(tmp_path / "link.npz")  # a link stays one
    assert sf.StepTable.load(tmp_path / "a.npz") == table[:2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "link.npz"]
