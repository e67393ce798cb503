"""The ahead-of-time build: on any machine every kernel, for every architecture, without a spill.

The fast tests build one variant of each kind for one architecture; the slow ones build all of them.
"""

import ctypes
import hashlib
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import cuda_toolkit
import pytest

pytest.importorskip("triton", reason="Triton is not installed: it comes for x86-64 Linux")

from stepfuse.kernels import aot
from stepfuse.kernels.aot import ARCHITECTURES
from stepfuse.kernels.variants import ARGUMENTS, OF_NETWORK, OF_STATE, variants

VARIANTS = {variant.name: variant for variant in variants()}
#: Every kernel and grid, each layout of alignment, and both ways of noise.
FEW = (
    "fused_step.float32.float16.noise.any",
    "fused_step.float32.float32.plain.large",
    "fused_step.float16.float16.plain.small",
    "guidance_sums.bfloat16.any",
    "guided_rows",
    "magnitude_counts.float32.float16.aligned",
    "thresholded_rows",
    "keep_known.float32.float16.aligned",
    "renormed_predictions.float16",
)
PARAMETER = re.compile(rb"Ordinal : (\S+)\s+Offset\s+: (\S+)\s+Size\s+: (\S+)")
RECORD = Path(__file__).parents[2] / "benchmarks/results/cubins.json"


def build(*arguments, interpret="0"):
    # In a process of its own: in the tests' process Triton may interpret, and then it compiles nothing.
    command = [sys.executable, "-m", "stepfuse.kernels.aot", *map(str, arguments)]
    environment = {**os.environ, "TRITON_INTERPRET": interpret}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@dataclass(frozen=True)
class Build:
    folder: Path
    names: frozenset[str]
    architectures: tuple[int, ...]

    def manifest(self):
        return json.loads((self.folder / "manifest.json").read_text())


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((FEW, (90,)), id="few"),
        pytest.param((tuple(VARIANTS), ARCHITECTURES), id="all", marks=pytest.mark.slow),
    ],
)
def built(request, tmp_path_factory):
    names, architectures = request.param
    folder = tmp_path_factory.mktemp("cubins")
    chosen = () if set(names) == set(VARIANTS) else ("--only", *names, "--arch", *architectures)
    done = build("-o", folder, "--record", folder / "record.json", "-j", max(2, os.cpu_count() or 1), *chosen)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{len(names) * len(architectures)} cubins of {len(names)} variants, ")
    return Build(folder, frozenset(names), tuple(architectures))


def test_a_cubin_for_every_variant_and_architecture_is_as_the_manifest_says(built):
    manifest = built.manifest()
    assert set(manifest["variants"]) == built.names
    for variant in manifest["variants"].values():
        assert set(variant["cubins"]) == {str(cc) for cc in built.architectures}
        for cc, cubin in variant["cubins"].items():
            data = (built.folder / cubin["file"]).read_bytes()
            assert data[:4] == b"\x7fELF"
            assert (len(data), hashlib.sha256(data).hexdigest()) == (cubin["bytes"], cubin["sha256"])
            assert f"sm_{cc}" in cubin["file"]
    assert len(list(built.folder.rglob("*.cubin"))) == len(built.names) * len(built.architectures)


def test_a_cubin_s_parameters_and_threads_are_those_of_its_manifest(built):
    """As NVIDIA's own tool reads them from the machine code: the driver copies arguments by these sizes and places."""
    dump = cuda_toolkit.tool("cuobjdump")
    manifest = built.manifest()["variants"]
    for name, variant in manifest.items():
        sizes = [8 if one["type"][0] == "*" or one["type"][1:] == "64" else 4 for one in variant["arguments"]]
        fields = [(str(i), ctypes.c_int64 if size == 8 else ctypes.c_int32) for i, size in enumerate(sizes)]
        struct = type("Arguments", (ctypes.Structure,), {"_fields_": fields})  # placed as a structure of C's
        places = [getattr(struct, one).offset for one, _ in fields]
        for cubin in variant["cubins"].values():
            text = subprocess.run([dump, "-elf", built.folder / cubin["file"]], check=True, capture_output=True).stdout
            found = [[int(n, 16) for n in one] for one in PARAMETER.findall(text)]
            assert sorted(found) == [[i, *one] for i, one in enumerate(zip(places, sizes, strict=True))], name
            assert re.findall(rb"EIATTR_REQNTID\s+Format:.*\s+Value:\s+(\S+ \S+ \S+)", text) == [
                b"0x%x 0x1 0x1" % (32 * variant["num_warps"])
            ]


def test_nothing_spills_and_every_block_fits_a_processor(built):
    for variant in built.manifest()["variants"].values():
        for cubin in variant["cubins"].values():
            assert cubin["stack_bytes"] == 0
            assert 0 < cubin["registers"] * 32 * variant["num_warps"] <= 65536
            assert cubin["shared_bytes"] <= 48 << 10  # what a launch may ask for without an attribute


def test_aligned_kernels_read_and_write_sixteen_bytes_at_a_time(built):
    import triton

    elementwise = [
        name for name in sorted(built.names) if name.startswith(("fused_step.", "keep_known.")) and "noise" not in name
    ]
    assert elementwise
    for name in elementwise:
        _, state, *_, layout = name.split(".")
        if layout == "any":
            continue
        command = [triton.knobs.nvidia.nvdisasm.path, "-c", str(built.folder / f"sm_90/{name}.cubin")]
        code = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        widths = {access: set(re.findall(rf"\b{access}\.E(?:\.\w+)*?\.(U16|128)\b", code)) for access in ("LDG", "STG")}
        # Four elements of half precision, which small tiles have a thread, are eight bytes.
        # Two elements, which rows with a second line have, are eight bytes of float32: never element by element.
        four = state == "float32" and layout != "narrow"
        wide = {"128"} if four or layout in ("large", "wide") else set()
        assert widths == {"LDG": wide, "STG": wide}, name


def test_the_record_that_is_kept_is_of_these_kernels(built):
    kept, record = (json.loads(file.read_text()) for file in (RECORD, built.folder / "record.json"))
    assert set(kept["variants"]) == set(VARIANTS), "run make cubins"
    assert kept["columns"] == ["registers", "stack_bytes", "shared_bytes"]
    for name, cubins in kept["variants"].items():
        assert set(cubins) == {str(cc) for cc in ARCHITECTURES}, name
        assert all(stack == 0 for _, stack, _ in cubins.values()), name
    ptxas = {cc: kept["ptxas"][cc] for cc in record["ptxas"]}
    if (kept["triton"], ptxas) == (record["triton"], record["ptxas"]):  # other compilers take other registers
        kept_of_built = {name: {cc: kept["variants"][name][cc] for cc in ptxas} for name in built.names}
        assert kept_of_built == record["variants"], "run make cubins"


def test_arguments_are_the_kernel_s_in_order(built):
    for name, variant in built.manifest()["variants"].items():
        passed = [argument["name"] for argument in variant["arguments"] if argument["name"] != "null"]
        absent = {argument for argument, kind in VARIANTS[name].signature.items() if kind is None}
        assert passed == [argument for argument in VARIANTS[name].kernel.arg_names if argument not in absent]
        assert {argument["type"] for argument in variant["arguments"] if argument["name"] == "null"} <= {"*i8"}
        assert set(variant["divisible_by_16"]) <= set(passed)
        whole_samples = name.startswith(("guided_rows", "thresholded_rows"))
        assert variant["grid"] == ("slots" if whole_samples else "tiles")


def test_no_path_of_the_building_machine_is_in_a_cubin(built):
    for cubin in built.folder.rglob("*.cubin"):
        data = cubin.read_bytes()
        assert not [path for path in (b"step_kernel.py", b"site-packages", os.fsencode(built.folder)) if path in data]


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


def test_a_load_after_a_store_is_refused():
    aot.require_loads_first("step", "ld.global.b32 %r1, [%rd1]; ld.param.b64 %rd2, [p]; st.global.b32 [%rd2], %r1;")
    with pytest.raises(aot.BuildError, match="step must load all before its first store, got 1 loads"):
        aot.require_loads_first("step", "st.global.b32 [%rd2], %r1; ld.param.b64 %rd3, [p]; ld.global.v4.b32 {%r2};")
