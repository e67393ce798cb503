"""The ONNX Runtime back end: it reads and writes the loop's memory, and refuses a network that does not fit."""

import os
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest
import support

import stepfuse as sf
from stepfuse.backends.host import onnxruntime as backend


def test_the_engine_gives_what_the_session_itself_gives(tmp_path):
    bundle = support.write_tiny_bundle(tmp_path / "tiny")
    session = onnxruntime.InferenceSession(bundle.denoiser, providers=["CPUExecutionProvider"])

    def network(x, t, cond):
        return session.run(None, {"sample": x, "timestep": t, **cond})[0]

    arguments = {"cond": ["bag", None, "coat"], "steps": [2, 5, 3], "guidance_scale": 3.0, "seed": 1}
    with sf.Engine.load(bundle.path) as loaded, support.make_engine(network) as called:
        np.testing.assert_array_equal(loaded.sample(3, **arguments), called.sample(3, **arguments))


def refuse(folder, message, *, network=None, **info):
    path = support.write_tiny_bundle(folder / "tiny", network=network, **info).path
    with pytest.raises(sf.BundleError, match=message) as caught:
        sf.Engine.load(path, threads=1)
    assert str(path / "denoiser.onnx") in str(caught.value)


def test_a_file_that_is_no_network_is_refused(tmp_path):
    (tmp_path / "text").write_bytes(b"no network")
    with pytest.raises(sf.BundleError, match=r"denoiser\.onnx must be an ONNX file: wire type 6"):
        support.write_tiny_bundle(tmp_path / "tiny", network=tmp_path / "text")
    (tmp_path / "text").write_bytes(b"")  # a message without fields
    refuse(tmp_path, "does not load in ONNX Runtime: ", network=tmp_path / "text")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        pytest.param({"rows": 4}, r"dimension of sample must be dynamic, got shape \[4, 1, 4, 5\]", id="fixed-rows"),
        pytest.param(
            {"timestep_shape": []},
            r"first dimension of timestep must be dynamic, got shape \[\]",
            id="timestep-without-rows",
        ),
        pytest.param({"output": "noise"}, "must have an output prediction, got noise", id="output-name"),
    ],
)
def test_a_network_of_another_interface_is_refused(tmp_path, fault, message):
    refuse(tmp_path, message, network=support.write_network(tmp_path / "network.onnx", **fault))


@pytest.mark.parametrize(
    ("info", "message"),
    [
        pytest.param({"shape": (1, 8, 8)}, r"a row of sample must have shape \(1, 8, 8\), got \(1, 4, 5\)", id="shape"),
        pytest.param({"shape": (20,)}, r"a row of sample must have shape \(20,\), got \(1, 4, 5\)", id="rank"),
        pytest.param({"timestep_dtype": "int64"}, r"timestep must be int64, got tensor\(float\)", id="timestep-dtype"),
        pytest.param({"cond": {}}, "inputs must be sample, timestep, got sample, timestep, class_labels", id="no-cond"),
        pytest.param({"cond": {"y": sf.CondInput(null=0)}}, "inputs must be sample, timestep, y, got ", id="cond-name"),
        pytest.param(
            {"cond": {"class_labels": sf.CondInput("int32", null=0)}},
            r"must be int32, got tensor\(int64\)",
            id="cond-dtype",
        ),
        pytest.param(
            {"cond": {"class_labels": sf.CondInput(shape=(2,), null=[0, 0])}},
            r"a row of class_labels must have shape \(2,\), got \(\)",
            id="cond-shape",
        ),
    ],
)
def test_a_network_that_is_not_what_its_manifest_says_is_refused(tmp_path, info, message):
    refuse(tmp_path, message, **info)


def test_a_network_that_fails_says_so_and_the_engine_goes_on(tmp_path):
    cond = {"class_labels": sf.CondInput(null=0)}  # no names: nothing knows that class 99 is beyond the embedding
    bundle = support.write_tiny_bundle(tmp_path / "tiny", cond=cond)
    with sf.Engine.load(bundle.path) as engine:
        before = engine.sample(1, cond=1, steps=2, seed=0)
        with pytest.raises(sf.DenoiserError, match=r"ONNX Runtime could not run 1 rows: .*99"):
            engine.sample(1, cond=99, steps=2)
        np.testing.assert_array_equal(engine.sample(1, cond=1, steps=2, seed=0), before)


@pytest.mark.parametrize(
    ("threads", "error", "message"),
    [
        (-1, ValueError, "threads must be at least 0, got -1"),
        (1 << 20, ValueError, "threads must be at most .* on this machine, got 1048576"),
        (2.0, TypeError, "threads must be a whole number, got 2.0"),
    ],
)
def test_threads_are_as_many_as_a_machine_can_use(threads, error, message):
    with pytest.raises(error, match=message):
        sf.Engine.load("fashion", threads=threads)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="processes are held to processors on Linux")
def test_threads_are_no_more_than_the_processors_that_the_process_is_held_to():
    """ONNX Runtime counts the machine's: on one processor two threads that wait actively take turns."""
    code = """
import os, sys
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from pathlib import Path
from stepfuse.backends.host.onnxruntime import open_session
session = open_session(Path(sys.argv[1]))
print(session.get_session_options().intra_op_num_threads)
"""
    model = sf.Bundle.load("fashion").denoiser
    done = subprocess.run([sys.executable, "-c", code, str(model)], check=True, capture_output=True, text=True)
    assert int(done.stdout) == (0 if os.cpu_count() == 1 else 1)


@pytest.mark.parametrize(
    ("spinning", "allowed", "microseconds"),
    [(None, "1", "10"), (True, "1", None), (False, "0", None)],
)
def test_threads_wait_actively_for_a_moment_unless_said_otherwise(monkeypatch, spinning, allowed, microseconds):
    duration = {} if microseconds is None else {"session.intra_op.spin_duration_us": microseconds}
    assert backend._waiting(spinning) == {"session.intra_op.allow_spinning": allowed, **duration}
    monkeypatch.setattr(backend, "_RELEASE", (1, 25))  # which does not know the duration
    assert backend._waiting(spinning) == {"session.intra_op.allow_spinning": "1" if spinning else "0"}
