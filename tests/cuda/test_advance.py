"""The kernel between two steps of a loop: what is built in is compiled from its source."""

import hashlib
import re
import shutil
import subprocess
from pathlib import Path

import pytest

CUDA = Path(__file__).parents[2] / "csrc" / "cuda"


def test_the_ptx_is_of_the_source_as_it_stands():
    found = re.match(r"// .* with sha256 (\w+)\n", (CUDA / "advance.ptx.inl").read_text())
    assert found[1] == hashlib.sha256((CUDA / "advance.cu").read_bytes()).hexdigest(), "run csrc/cuda/advance.sh"


def test_the_ptx_leaves_one_name_open_and_asks_for_no_new_driver():
    text = (CUDA / "advance.ptx.inl").read_text()
    assert re.findall(r"\.extern \.func (\w+)", text) == ["cudaGraphSetConditional"]
    assert re.findall(r"^\.(?:version|target) (\S+)$", text, re.M) == ["8.0", "sm_80"]
    assert re.findall(r"\.param \.(u\d+) stepfuse", text) == ["u64"] * 4 + ["u32"] * 2


def test_the_ptx_assembles_for_every_architecture(tmp_path):
    """Without cudadevrt, as the driver has to."""
    assembler = shutil.which("ptxas") or _triton_s_assembler()
    if not assembler:
        pytest.skip("there is no ptxas: it comes with Triton, or the CUDA toolkit")
    ptx = tmp_path / "advance.ptx"
    ptx.write_text(re.search(r'R"ptx\((.*)\)ptx"', (CUDA / "advance.ptx.inl").read_text(), re.S)[1])
    for architecture in (80, 86, 89, 90):
        command = [assembler, f"-arch=sm_{architecture}", str(ptx), "-o", str(tmp_path / "advance.cubin")]
        subprocess.run(command, check=True)


def _triton_s_assembler():
    try:
        import triton
    except ModuleNotFoundError:
        return None
    return triton.knobs.nvidia.ptxas.path
