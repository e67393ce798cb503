"""Every specialization of a launch's arguments compiles, without a GPU. That it also runs is tested on a GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton", reason="Triton is not installed: it comes for x86-64 Linux")


def test_every_kind_of_launch_compiles(tmp_path):
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    script = Path(__file__).with_name("compile_only.py")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    adapts = ["guidance_sums_kernel", "guided_rows_kernel"] * 2
    adapts += ["magnitude_counts_kernel", "thresholded_rows_kernel"] * 4 + ["renormed_predictions_kernel"]
    assert done.stdout.split() == ["fused_step_kernel"] * 4 + adapts * 2 + ["keep_known_kernel"] * 2
