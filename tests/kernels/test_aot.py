"""The ahead-of-time build: on any machine every kernel, for every architecture, without a spill."""

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed: it comes for x86-64 Linux")

from stepfuse.kernels.aot import ARCHITECTURES
from stepfuse.kernels.variants import ARGUMENTS, OF_NETWORK, OF_STATE, variants

VARIANTS = {variant.name: variant for variant in variants()}
RECORD = Path(__file__).parents[2] / "benchmarks/results/cubins.json"


def build(*arguments, interpret="0"):
    # A process of its own: in the tests' one Triton may interpret, and then it compiles nothing.
    command = [sys.executable, "-m", "stepfuse.kernels.aot", *map(str, arguments)]
    environment = {**os.environ, "TRITON_INTERPRET": interpret}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cubins")
    done = build("-o", folder, "--record", folder / "record.json", "-j", max(2, os.cpu_count() or 1))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{len(VARIANTS) * len(ARCHITECTURES)} cubins of {len(VARIANTS)} variants, ")
    return folder


@pytest.fixture(scope="module")
def manifest(folder):
    return json.loads((folder / "manifest.json").read_text())


def test_a_cubin_for_every_variant_and_architecture_is_as_the_manifest_says(folder, manifest):
    assert set(manifest["variants"]) == set(VARIANTS)
    for variant in manifest["variants"].values():
        assert set(variant["cubins"]) == {str(cc) for cc in ARCHITECTURES}
        for cc, cubin in variant["cubins"].items():
            data = (folder / cubin["file"]).read_bytes()
            assert data[:4] == b"\x7fELF"
            assert (len(data), hashlib.sha256(data).hexdigest()) == (cubin["bytes"], cubin["sha256"])
            assert f"sm_{cc}" in cubin["file"]
    assert len(list(folder.rglob("*.cubin"))) == len(VARIANTS) * len(ARCHITECTURES)


def test_nothing_spills_and_every_block_fits_a_processor(manifest):
    for variant in manifest["variants"].values():
        for cubin in variant["cubins"].values():
            assert cubin["stack_bytes"] == 0
            assert 0 < cubin["registers"] * 32 * variant["num_warps"] <= 65536
            assert cubin["shared_bytes"] <= 48 << 10  # what a launch may ask for without an attribute


def test_aligned_kernels_read_and_write_sixteen_bytes_at_a_time(folder):
    import triton

    elementwise = [name for name in VARIANTS if name.startswith(("fused_step.", "keep_known.")) and "noise" not in name]
    for name in elementwise:
        _, state, *_, layout = name.split(".")
        if layout == "any":
            continue
        command = [triton.knobs.nvidia.nvdisasm.path, "-c", str(folder / f"sm_90/{name}.cubin")]
        code = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        widths = {access: set(re.findall(rf"\b{access}\.E(?:\.\w+)*?\.(U16|128)\b", code)) for access in ("LDG", "STG")}
        # Four elements of half precision, which small tiles have a thread, are eight bytes.
        wide = {"128"} if state == "float32" or layout in ("large", "wide") else set()
        assert widths == {"LDG": wide, "STG": wide}, name


def test_the_record_that_is_kept_is_of_these_kernels(folder):
    kept, built = (json.loads(file.read_text()) for file in (RECORD, folder / "record.json"))
    assert set(kept["variants"]) == set(VARIANTS), "run make cubins"
    assert kept["columns"] == ["registers", "stack_bytes", "shared_bytes"]
    for name, cubins in kept["variants"].items():
        assert set(cubins) == {str(cc) for cc in ARCHITECTURES}, name
        assert all(stack == 0 for _, stack, _ in cubins.values()), name
    if (kept["triton"], kept["ptxas"]) == (built["triton"], built["ptxas"]):  # other compilers take other registers
        assert kept["variants"] == built["variants"], "run make cubins"


def test_arguments_are_the_kernel_s_in_order(manifest):
    for name, built in manifest["variants"].items():
        passed = [argument["name"] for argument in built["arguments"] if argument["name"] != "null"]
        absent = {argument for argument, kind in VARIANTS[name].signature.items() if kind is None}
        assert passed == [argument for argument in VARIANTS[name].kernel.arg_names if argument not in absent]
        assert {argument["type"] for argument in built["arguments"] if argument["name"] == "null"} <= {"*i8"}
        assert set(built["divisible_by_16"]) <= set(passed)
        whole_samples = name.startswith(("rescaled_rows", "thresholded_rows"))
        assert built["grid"] == ("slots" if whole_samples else "tiles")


def test_no_path_of_the_building_machine_is_in_a_cubin(folder):
    for cubin in folder.rglob("*.cubin"):
        data = cubin.read_bytes()
        assert not [path for path in (b"step_kernel.py", b"site-packages", os.fsencode(folder)) if path in data]


def test_variants_are_named_apart_and_know_every_argument():
    all_of_them = list(variants())
    assert len({variant.name for variant in all_of_them}) == len(all_of_them)
    taken = {name for variant in all_of_them for name in variant.kernel.arg_names}
    assert taken == {*ARGUMENTS, *OF_STATE, *OF_NETWORK, "BLOCK"}


@pytest.mark.parametrize(
    ("only", "interpret", "message"),
    [
        pytest.param("fused_stop*", "0", "no variant has a name like fused_stop*", id="name"),
        pytest.param("*", "1", "nothing is compiled under TRITON_INTERPRET", id="interpreter"),
    ],
)
def test_refuses(tmp_path, only, interpret, message):
    done = build("-o", tmp_path / "cubins", "--only", only, interpret=interpret)
    assert done.returncode == 1
    assert done.stderr.startswith(message)
