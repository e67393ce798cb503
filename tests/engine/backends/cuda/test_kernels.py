"""Where the step's compiled kernel comes from: a folder of cubins, or Triton."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from stepfuse.backends.cuda import kernels as cuda_kernels
from stepfuse.backends.cuda.kernels import KernelError, OtherGpuError, StepKernels, packed, runs_on

NAME = "fused_step.float32.float32.plain.small"
ARCHITECTURES = ("80", "90")


def run(*arguments):
    # A process of its own: in the tests' one Triton may interpret, and then it compiles nothing.
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    pytest.importorskip("triton", reason="Triton is not installed: it comes for x86-64 Linux")
    folder = tmp_path_factory.mktemp("cubins")
    done = run("-m", "stepfuse.kernels.aot", "-o", str(folder), "--only", NAME, "--arch", *ARCHITECTURES)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def folder(built, tmp_path):
    return shutil.copytree(built, tmp_path / "cubins")


@pytest.mark.parametrize(
    ("built", "cc", "chosen"),
    [
        pytest.param([80, 90], 80, 80, id="its-own"),
        pytest.param([80, 86], 89, 86, id="the-newest-of-its-major"),
        pytest.param([89], 80, None, id="not-a-newer-one"),
        pytest.param([80], 90, None, id="not-another-major"),
        # From 9.0 on kernels are compiled for one architecture alone: sm_90a, sm_100a.
        pytest.param([100], 103, None, id="not-a-specific-one"),
        pytest.param([], 90, None, id="none"),
    ],
)
def test_a_gpu_takes_its_own_kernels_or_older_ones_of_its_major(built, cc, chosen):
    assert runs_on(built, cc) == chosen


def test_a_pack_s_kernel_is_the_file_and_what_the_manifest_says(folder):
    manifest = json.loads((folder / "manifest.json").read_text())["variants"][NAME]
    cubin = packed(folder, NAME, 90)
    assert cubin.image == (folder / "sm_90" / f"{NAME}.cubin").read_bytes()
    assert (cubin.kernel, cubin.block, cubin.num_warps) == ("fused_step_kernel", 256, 2)
    assert [(name, kind) for name, kind, _ in cubin.arguments] == [
        (one["name"], one["type"]) for one in manifest["arguments"]
    ]
    assert {name for name, _, divisible in cubin.arguments if divisible} == set(manifest["divisible_by_16"])


def test_a_kernel_compiled_on_the_spot_is_the_pack_s(built):
    script = (
        "import sys; from pathlib import Path; from stepfuse.backends.cuda.kernels import compiled, packed\n"
        f"a, b = compiled({NAME!r}, 90), packed(Path(sys.argv[1]), {NAME!r}, 90)\n"
        "assert a.image[:4] == b'\\x7fELF' == b.image[:4]\n"
        "assert vars(a) | {'image': b.image} == vars(b), (a.arguments, b.arguments)"
    )
    done = run("-c", script, str(built))
    assert done.returncode == 0, done.stderr


def test_without_a_pack_and_without_triton_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(KernelError, match=r"needs triton: pip install '\S+\[kernels\]'"):
        cuda_kernels.compiled(NAME, 90)


def break_version(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "format_version": 2}))


@pytest.mark.parametrize(
    ("spoil", "name", "cc", "message"),
    [
        pytest.param(lambda f: None, NAME, 120, r"kernels for sm_80, sm_90, the GPU is sm_120: .*--arch 120", id="cc"),
        pytest.param(lambda f: None, "fused_stop", 90, "must hold fused_stop", id="variant"),
        pytest.param(lambda f: (f / "manifest.json").unlink(), NAME, 90, "must be a folder written", id="absent"),
        pytest.param(lambda f: (f / "manifest.json").write_text("{"), NAME, 90, "must be a folder", id="no-json"),
        pytest.param(break_version, NAME, 90, "must have format_version 1, got 2", id="version"),
        pytest.param(lambda f: shutil.rmtree(f / "sm_90"), NAME, 90, "must hold .*, whole", id="no-file"),
        pytest.param(
            lambda f: (f / "sm_90" / f"{NAME}.cubin").write_bytes(b"\x7fELF"), NAME, 90, "the checksum", id="checksum"
        ),
    ],
)
def test_an_unusable_pack_is_refused(folder, spoil, name, cc, message):
    spoil(folder)
    with pytest.raises(KernelError, match=message):
        packed(folder, name, cc)


@pytest.fixture
def other_gpu(monkeypatch):
    """A folder whose kernels are for other GPUs than this one."""

    def packed(folder, name, cc):
        raise OtherGpuError(f"{folder} has kernels for sm_80, the GPU is sm_{cc}")

    monkeypatch.setattr(cuda_kernels, "packed", packed)
    return StepKernels(SimpleNamespace(compute_capability=90), "float32", Path("cubins"))


def test_kernels_for_other_gpus_are_compiled_by_triton_with_a_warning(other_gpu, monkeypatch, caplog):
    cubin = SimpleNamespace(load=lambda context: "loaded")
    monkeypatch.setattr(cuda_kernels, "compiled", lambda name, cc: cubin)
    assert other_gpu.named(NAME) == "loaded"
    assert f"{NAME} is compiled here, by Triton: cubins has kernels for sm_80, the GPU is sm_90" in caplog.text


def test_kernels_for_other_gpus_are_refused_without_triton(other_gpu, monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(OtherGpuError, match="cubins has kernels for sm_80, the GPU is sm_90"):
        other_gpu.named(NAME)
