"""What is declared of the driver's interface, against NVIDIA's own headers by a translation unit that is compiled."""

import re
import shutil
import subprocess
from pathlib import Path

import cuda_toolkit
import pytest

CSRC = Path(__file__).parents[2] / "csrc"
API = (CSRC / "cuda" / "api.h").read_text()

#: Fields that are named as in cuda.h.
NAMED_ALIKE = {
    "CUDA_KERNEL_NODE_PARAMS_v2": (
        *("func", "gridDimX", "gridDimY", "gridDimZ", "blockDimX", "blockDimY", "blockDimZ"),
        *("sharedMemBytes", "kernelParams", "extra", "kern", "ctx"),
    ),
    "CUDA_CONDITIONAL_NODE_PARAMS": ("handle", "type", "size", "phGraph_out", "ctx"),
    "CUgraphNodeParams": ("type", "reserved0", "conditional", "reserved2"),
}
#: A copy's two sides are not structures of their own there.
SIDES = {
    f"{side}.{ours}": prefix + theirs
    for side, prefix in (("from", "src"), ("to", "dst"))
    for ours, theirs in (
        *(("x", "XInBytes"), ("y", "Y"), ("z", "Z"), ("lod", "LOD"), ("type", "MemoryType"), ("host", "Host")),
        *(("device", "Device"), ("array", "Array"), ("pitch", "Pitch"), ("height", "Height")),
    )
}
FIELDS = {struct: {name: name for name in names} for struct, names in NAMED_ALIKE.items()} | {
    "CUDA_MEMCPY3D_v2": {**SIDES, "width": "WidthInBytes", "height": "Height", "depth": "Depth"}
}
ENUMS = re.findall(r"^enum (\w+) : ", API, re.M)
VALUES = dict(re.findall(r"\b(CU[A-Z0-9_]{4,}) = (\d+)", API))
CALLS = re.findall(r'CALL\((\w+), "(\w+)", (\d+),', API)

#: Types that are the same to the driver: sizes and signs of numbers, what pointers lead to, structures by their names.
SAME = """
template <class A, class B>
struct SameName : std::false_type {};
NAMES
template <class A, class B>
constexpr bool same() {
  if constexpr (std::is_pointer_v<A> && std::is_pointer_v<B>) {
    using To = std::remove_pointer_t<A>;
    using Also = std::remove_pointer_t<B>;
    return std::is_const_v<To> == std::is_const_v<Also> && same<std::remove_const_t<To>, std::remove_const_t<Also>>();
  } else if constexpr (std::is_void_v<A> || std::is_void_v<B>) {
    return std::is_void_v<A> && std::is_void_v<B>;
  } else if constexpr (std::is_enum_v<A> && std::is_enum_v<B>) {
    return sizeof(A) == sizeof(B);
  } else if constexpr (std::is_arithmetic_v<A> && std::is_arithmetic_v<B>) {
    return sizeof(A) == sizeof(B) && std::is_signed_v<A> == std::is_signed_v<B> &&
           std::is_floating_point_v<A> == std::is_floating_point_v<B>;
  } else if constexpr (std::is_class_v<A> && std::is_class_v<B>) {
    return SameName<A, B>::value;
  } else {
    return false;
  }
}
template <class A, class B>
struct SameCall : std::false_type {};
template <class R, class... A, class S, class... B>
struct SameCall<R (*)(A...), S (*)(B...)> {
  static constexpr bool value = [] {
    if constexpr (sizeof...(A) == sizeof...(B))
      return same<R, S>() && (same<A, B>() && ...);
    else
      return false;
  }();
};
"""


def checked(api):
    """The translation unit that compares a text of api.h with the toolkit's headers."""
    values = re.findall(r"\b(CU[A-Z0-9_]{4,}) = (\d+)", api)
    checks = [f"static_assert(static_cast<long long>({name}) == {value}, {name!r});" for name, value in values]
    checks += [f"static_assert(sizeof(ours::{name}) == sizeof(::{name}));" for name in (*ENUMS, *FIELDS)]
    for struct, fields in FIELDS.items():
        checks += [
            f"static_assert(offsetof(ours::{struct}, {ours}) == offsetof(::{struct}, {theirs}));"
            for ours, theirs in fields.items()
        ]
    for name, exported, version in re.findall(r'CALL\((\w+), "(\w+)", (\d+),', api):
        checks += [
            f"static_assert(SameCall<Of_{name}, PFN_{name}_v{version}>::value);",
            f"static_assert(SameCall<Of_{name}, decltype(&::{exported})>::value);",
        ]
    structs = [*FIELDS, *re.findall(r"struct (\w+_st)\*", api)]
    names = "\n".join(f"template <> struct SameName<ours::{one}, ::{one}> : std::true_type {{}};" for one in structs)
    return "\n".join(
        [
            api.replace("#pragma once", ""),
            "namespace ours = stepfuse::cuda;",
            "namespace stepfuse::cuda {",
            "#define STEPFUSE_CALL(name, exported, version, ...) using Of_##name = CUresult (*)(__VA_ARGS__);",
            "STEPFUSE_CUDA_CALLS(STEPFUSE_CALL)",
            "}  // namespace stepfuse::cuda",
            "#define __CUDA_API_VERSION_INTERNAL  // declares each form of a function by its exported name",
            "#include <cuda.h>",
            "#include <cudaTypedefs.h>",
            "#include <type_traits>",
            SAME.replace("NAMES", names),
            *(f"using Of_{name} = ours::Of_{name};" for name, _, _ in re.findall(r'CALL\((\w+), "(\w+)", (\d+),', api)),
            *checks,
            "",
        ]
    ).replace("'", '"')


def compile_(text, folder):
    compiler = shutil.which("c++") or pytest.skip("there is no C++ compiler")
    unit = folder / "api_check.cpp"
    unit.write_text(text)
    command = [
        compiler,
        "-std=c++17",
        "-fsyntax-only",
        "-I",
        str(CSRC / "cuda"),
        "-I",
        str(cuda_toolkit.include()),
        str(unit),
    ]
    return subprocess.run(command, capture_output=True, text=True)


def test_all_of_it_is_compared():
    assert (len(CALLS), len(VALUES)) == (API.count("  CALL("), len(set(re.findall(r"\bCU[A-Z0-9_]{4,} = \d+", API))))
    assert set(re.findall(r"^struct (\w+) \{", API, re.M)) == set(FIELDS)


def test_it_is_what_the_toolkit_declares(tmp_path):
    done = compile_(checked(API), tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("right", "wrong", "found"),
    [
        ("NODE_TYPE_CONDITIONAL = 13", "NODE_TYPE_CONDITIONAL = 14", "CU_GRAPH_NODE_TYPE_CONDITIONAL"),
        ("COND_ASSIGN_DEFAULT = 1", "COND_ASSIGN_DEFAULT = 2", "CU_GRAPH_COND_ASSIGN_DEFAULT"),
        ("3020, CUdeviceptr*, ", "3020, unsigned*, ", "Of_cuMemAlloc"),
        ('cuGraphUpload", 11010', 'cuGraphUpload", 11020', "PFN_cuGraphUpload_v11020"),
        ('"cuStreamDestroy_v2"', '"cuStreamDestroy_v3"', "cuStreamDestroy_v3"),
        ('Node_v2", 12000', 'Node_v2", 10000', "Of_cuGraphAddKernelNode"),
        ("10000, CUgraphNode, CUgraph*", "10000, CUgraphNode, CUgraphExec*", "Of_cuGraphChildGraphNodeGetGraph"),
        ("  void** extra;\n  CUkernel kern;", "  CUkernel kern;\n  void** extra;", "extra"),
        ("2000, float*", "2000, double*", "Of_cuEventElapsedTime"),
    ],
    ids=["enum", "constant", "pointer", "version", "symbol", "older form", "handle", "fields", "number"],
)
def test_what_is_declared_wrong_is_found(right, wrong, found, tmp_path):
    assert API.count(right) == 1, "the declaration has changed: change the fault"
    done = compile_(checked(API.replace(right, wrong)), tmp_path)
    assert done.returncode != 0
    assert any(found in line for line in done.stderr.splitlines() if "error" in line or "static_assert" in line)
