"""The kernel between two steps of a loop: what is built in is compiled from its source."""

import hashlib
import re
import subprocess
from pathlib import Path

import cuda_toolkit
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


def ptx_in(folder, rename=""):
    """The text as a file, with another name in the place of the open one if ``rename`` says so."""
    text = re.search(r'R"ptx\((.*)\)ptx"', (CUDA / "advance.ptx.inl").read_text(), re.S)[1]
    ptx = folder / "advance.ptx"
    ptx.write_text(text.replace("cudaGraphSetConditional", rename) if rename else text)
    return ptx


@pytest.mark.parametrize("architecture", [80, 86, 89, 90, 100, 120])
def test_the_ptx_assembles_for_every_architecture(tmp_path, architecture):
    """As a whole program, which is what the driver compiles it as."""
    command = [cuda_toolkit.tool("ptxas"), f"-arch=sm_{architecture}", ptx_in(tmp_path), "-o", tmp_path / "whole.cubin"]
    subprocess.run(command, check=True)


def test_a_name_that_the_driver_does_not_have_is_refused(tmp_path):
    command = [cuda_toolkit.tool("ptxas"), "-arch=sm_90", ptx_in(tmp_path, "cudaGraphSetCondition"), "-o", "/dev/null"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0
    assert "Unresolved extern function 'cudaGraphSetCondition'" in done.stderr + done.stdout


@pytest.mark.parametrize("architecture", [80, 90, 100, 120])
@pytest.mark.parametrize("with_runtime", [False, True], ids=["alone", "with cudadevrt"])
def test_the_linker_leaves_the_name_to_the_driver(tmp_path, architecture, with_runtime):
    linker, runtime = cuda_toolkit.tool("nvlink"), cuda_toolkit.device_runtime()
    options = [f"-L{runtime}", "-lcudadevrt"] if with_runtime else []

    def linked(ptx):
        part, whole = tmp_path / "advance.o", tmp_path / "advance.cubin"
        subprocess.run([cuda_toolkit.tool("ptxas"), f"-arch=sm_{architecture}", "-c", ptx, "-o", part], check=True)
        return subprocess.run([linker, f"-arch=sm_{architecture}", part, *options, "-o", whole], capture_output=True)

    assert linked(ptx_in(tmp_path)).returncode == 0
    assert b"Undefined reference to 'cudaGraphSetCondition'" in linked(ptx_in(tmp_path, "cudaGraphSetCondition")).stderr
