"""What is ONNX Runtime's own: its errors, its threads and how they wait; ``test_host_networks.py`` has the rest."""

import os
import subprocess
import sys

import numpy as np
import pytest
import support

import stepfuse as sf
from stepfuse.backends.host import onnxruntime as backend


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
    [
        pytest.param(
            *(None, "1", "10"),
            marks=pytest.mark.skipif(backend._RELEASE < (1, 26), reason="ONNX Runtime takes a duration since 1.26"),
        ),
        (True, "1", None),
        (False, "0", None),
    ],
)
def test_threads_wait_actively_for_a_moment_unless_said_otherwise(monkeypatch, spinning, allowed, microseconds):
    duration = {} if microseconds is None else {"session.intra_op.spin_duration_us": microseconds}
    assert backend._waiting(spinning) == {"session.intra_op.allow_spinning": allowed, **duration}
    monkeypatch.setattr(backend, "_RELEASE", (1, 25))  # which does not know the duration
    assert backend._waiting(spinning) == {"session.intra_op.allow_spinning": "1" if spinning else "0"}
