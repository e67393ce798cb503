"""The CUDA toolkit and Triton's copies of its tools, where they are."""

import os
import shutil
from pathlib import Path

import pytest


def include() -> Path:
    """The folder of cuda.h; the test is skipped where there is none."""
    roots = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    for root in filter(None, roots):
        if (found := Path(root) / "include").joinpath("cudaTypedefs.h").exists():
            return found
    return pytest.skip("there is no CUDA toolkit, whose headers this reads: set CUDA_HOME")


def device_runtime() -> Path:
    """The folder of cudadevrt, the runtime library of the device; the test is skipped where there is none."""
    for folder in ("lib64", "lib", "lib/x64"):
        if list((found := include().parent / folder).glob("*cudadevrt*")):
            return found
    return pytest.skip("there is no cudadevrt: it comes with the CUDA toolkit")


def tool(name: str) -> str:
    """Path of a program of the toolkit; the test is skipped where there is none."""
    found = shutil.which(name) or shutil.which(name, path="/usr/local/cuda/bin") or _of_triton(name)
    return found or pytest.skip(f"there is no {name}: it comes with the CUDA toolkit")


def _of_triton(name: str) -> str | None:
    try:
        import triton
    except ModuleNotFoundError:
        return None
    found = getattr(triton.knobs.nvidia, name, None)
    return None if found is None else found.path
