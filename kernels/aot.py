"""Ahead-of-time build: every kernel variant as a cubin for every architecture, with a manifest. Needs no GPU.

``python -m stepfuse.kernels.aot -o DIR`` writes ``DIR/manifest.json`` and ``DIR/sm_<cc>/<variant>.cubin``. Loading them
needs the CUDA driver alone. Registers and stack are read from the cubins by the cuobjdump that comes with Triton.
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from stepfuse.kernels.configs import COMPILE_OPTIONS, WIDE, WIDE_REGISTERS
from stepfuse.kernels.step_kernel import fused_step_kernel
from stepfuse.kernels.variants import Variant, variants

FORMAT_VERSION = 1

#: Compute capabilities, times ten: A100, A10 and GeForce 30, L4 and GeForce 40, H100 and H200, B200, GeForce 50.
ARCHITECTURES = (80, 86, 89, 90, 100, 120)


class BuildError(RuntimeError):
    """A kernel does not meet a rule of the build, or nothing can be built."""


def build(
    folder: Path,
    *,
    architectures: Sequence[int] = ARCHITECTURES,
    only: Sequence[str] = ("*",),
    jobs: int | None = None,
) -> dict[str, Any]:
    """Compiles the variants whose names match one of ``only`` and writes them with their manifest.

    Args:
        folder: Where files are written; created if it does not exist.
        architectures: Compute capabilities times ten.
        only: Shell patterns of variants' names.
        jobs: Number of parallel processes; None: one a CPU core.

    Returns:
        The manifest.

    Raises:
        BuildError: If Triton interprets; no name matches; a kernel uses local memory (a spill), scratch memory, or
            operations that round in another way than the CPU's; its parameters are not those of the variant; or the
            step loads after its first store.
    """
    if triton.knobs.runtime.interpret:
        raise BuildError("nothing is compiled under TRITON_INTERPRET: unset it")
    names = [v.name for v in variants() if any(fnmatch.fnmatchcase(v.name, pattern) for pattern in only)]
    if not names:
        raise BuildError(f"no variant has a name like {' or '.join(only)}")
    for cc in architectures:
        (folder / f"sm_{cc}").mkdir(parents=True, exist_ok=True)
    # Spawned, since Triton's compiler has threads whose locks a fork would copy.
    jobs = min(jobs or os.cpu_count() or 1, len(names))
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        tasks = [pool.submit(_build_variant, name, folder, tuple(architectures)) for name in names]
        built = {name: task.result() for name, task in zip(names, tasks, strict=True)}
    manifest = {
        "format_version": FORMAT_VERSION,
        "triton": triton.__version__,
        "ptxas": {str(cc): _ptxas_version(cc) for cc in architectures},
        "variants": built,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    return manifest


def compile_variant(variant: Variant, cc: int) -> Any:
    """One variant for one architecture, as Triton's compiled kernel."""
    index = {name: (position,) for position, name in enumerate(variant.kernel.arg_names)}
    constants: dict[tuple[int, ...], Any] = {
        index[name]: None for name, kind in variant.signature.items() if kind is None
    }
    constants[index["BLOCK"]] = variant.config.block
    source = ASTSource(
        variant.kernel,
        {name: kind or "constexpr" for name, kind in variant.signature.items()},
        constants,
        {index[name]: [["tt.divisibility", 16]] for name in variant.divisible_by_16},
    )
    options = {"num_warps": variant.config.num_warps, **COMPILE_OPTIONS}
    if variant.config == WIDE:
        options["maxnreg"] = WIDE_REGISTERS
    return triton.compile(source, target=GPUTarget("cuda", cc, 32), options=options)


def resources_of(cubin: Path) -> dict[str, int]:
    """Registers and bytes of stack a thread, read from a cubin. Spilled registers are on the stack."""
    command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", str(cubin)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = dict(re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text))
    return {"registers": int(found["REG"]), "stack_bytes": int(found["STACK"]) + int(found["LOCAL"])}


def require_exact(name: str, ptx: str) -> None:
    """Raises BuildError if a kernel's PTX contracts, flushes or approximates: it would not give the CPU's bits."""
    inexact = sorted(set(re.findall(r"\b(?:fma|div\.full)\.\S*|\S+\.(?:ftz|approx)\S*", ptx)))
    if inexact:
        raise BuildError(f"{name} must round every operation as the CPU does, got {', '.join(inexact)}")


def require_loads_first(name: str, ptx: str) -> None:
    """Raises BuildError if a kernel's PTX loads after its first store.

    The compiler may not move such a load before the store, which might be of the same memory, so that its latency would
    come on top of the others'.
    """
    _, store, rest = ptx.partition("st.global")
    if late := re.findall(r"\bld\.global\S*", rest):
        raise BuildError(f"{name} must load all before its first store, got {len(late)} loads after {store}")


def parameters_of(ptx: str) -> list[str]:
    """PTX types of a kernel's parameters, in the order of a launch."""
    [entry] = re.findall(r"\.entry\s+\w+\(([^)]*)\)", ptx)
    return re.findall(r"\.param\s+\.(\w+)", entry)


def arguments_of(variant: Variant, ptx: str) -> list[dict[str, str]]:
    """Name and type of each argument of a launch, in order.

    Triton appends pointers to scratch memory. These kernels do not use it: a launch passes null for them.

    Raises:
        BuildError: If the parameters in the PTX are not those of the variant.
    """
    named = [(name, kind) for name, kind in variant.signature.items() if kind]
    passed = parameters_of(ptx)
    expected = ["u64" if kind.startswith("*") or kind == "i64" else "u32" for _, kind in named]
    if passed[: len(named)] != expected or set(passed[len(named) :]) - {"u64"}:
        raise BuildError(f"{variant.name}: parameters are {passed}, where {expected} and null pointers were expected")
    ours = [{"name": name, "type": kind} for name, kind in named]
    return ours + [{"name": "null", "type": "*i8"} for _ in passed[len(named) :]]


def _build_variant(name: str, folder: Path, architectures: Sequence[int]) -> dict[str, Any]:
    [variant] = [variant for variant in variants() if variant.name == name]
    triton.knobs.compilation.disable_line_info = True  # no path of the building machine, and a third of the size
    cubins, arguments, kernel_name = {}, None, None
    with tempfile.TemporaryDirectory() as cache:
        triton.knobs.cache.dir = cache
        for cc in architectures:
            kernel = compile_variant(variant, cc)
            file = folder / f"sm_{cc}" / f"{name}.cubin"
            file.write_bytes(kernel.asm["cubin"])
            resources = resources_of(file)
            if resources["stack_bytes"]:
                raise BuildError(f"{name} for sm_{cc} must not use local memory, got {resources['stack_bytes']} bytes")
            if kernel.metadata.global_scratch_size:
                raise BuildError(f"{name} for sm_{cc} must not need scratch memory")
            require_exact(name, kernel.asm["ptx"])
            if variant.kernel is fused_step_kernel:
                require_loads_first(name, kernel.asm["ptx"])
            arguments, kernel_name = arguments_of(variant, kernel.asm["ptx"]), kernel.metadata.name
            cubins[str(cc)] = {
                "file": str(file.relative_to(folder)),
                "bytes": file.stat().st_size,
                "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
                "shared_bytes": kernel.metadata.shared,
                **resources,
            }
    return {
        "kernel": kernel_name,
        "block": variant.config.block,
        "num_warps": variant.config.num_warps,
        "grid": variant.grid,
        "arguments": arguments,
        "divisible_by_16": variant.divisible_by_16,
        "cubins": cubins,
    }


def _ptxas_version(cc: int) -> str:
    tool = triton.knobs.nvidia.ptxas_blackwell if cc >= 100 else triton.knobs.nvidia.ptxas
    return str(tool.version)


def record_of(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Registers, bytes of stack and shared bytes of each variant, by architecture."""
    columns = ("registers", "stack_bytes", "shared_bytes")
    return {
        "triton": manifest["triton"],
        "ptxas": manifest["ptxas"],
        "columns": columns,
        "variants": {
            name: {cc: [cubin[column] for column in columns] for cc, cubin in variant["cubins"].items()}
            for name, variant in manifest["variants"].items()
        },
    }


def write_record(manifest: Mapping[str, Any], file: Path) -> None:
    """Writes the record, a line a variant."""
    record = record_of(manifest)
    built = ",\n".join(f"  {json.dumps(name)}: {json.dumps(one)}" for name, one in record.pop("variants").items())
    head = "".join(f" {json.dumps(key)}: {json.dumps(value)},\n" for key, value in record.items())
    file.write_text(f'{{\n{head} "variants": {{\n{built}\n }}\n}}\n')


def summary_of(manifest: Mapping[str, Any]) -> str:
    """A line with the numbers of cubins and variants, their size and their registers."""
    cubins = [cubin for variant in manifest["variants"].values() for cubin in variant["cubins"].values()]
    size = sum(cubin["bytes"] for cubin in cubins) / 1e6
    registers = [cubin["registers"] for cubin in cubins]
    counts = f"{len(cubins)} cubins of {len(manifest['variants'])} variants"
    return f"{counts}, {size:.1f} MB, {min(registers)} to {max(registers)} registers"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m stepfuse.kernels.aot", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--arch", type=int, nargs="+", default=ARCHITECTURES, help="compute capabilities times ten")
    parser.add_argument("--only", nargs="+", default=("*",), help="shell patterns of variants' names")
    parser.add_argument("-j", "--jobs", type=int, help="processes at once")
    parser.add_argument("--record", type=Path, help="file for registers, spills and shared memory of what was built")
    options = parser.parse_args(arguments)
    try:
        manifest = build(options.output, architectures=options.arch, only=options.only, jobs=options.jobs)
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    if options.record:
        write_record(manifest, options.record)
    print(summary_of(manifest))
    return 0


if __name__ == "__main__":
    sys.exit(main())
