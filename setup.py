"""Build of the compiled core, and the map from the repository's folders to the one import name."""

import sys
from pathlib import Path

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension
from setuptools import setup

PACKAGES = {
    "stepfuse": "engine",
    "stepfuse.analysis": "engine/analysis",
    "stepfuse.analysis.experiments": "engine/analysis/experiments",
    "stepfuse.analysis.figures": "engine/analysis/figures",
    "stepfuse.analysis.measures": "engine/analysis/measures",
    "stepfuse.analysis.report": "engine/analysis/report",
    "stepfuse.backends": "engine/backends",
    "stepfuse.backends.cuda": "engine/backends/cuda",
    "stepfuse.backends.host": "engine/backends/host",
    "stepfuse.backends.host.openvino": "engine/backends/host/openvino",
    "stepfuse.batch": "engine/batch",
    "stepfuse.benchmarking": "engine/benchmarking",
    "stepfuse.bundle": "engine/bundle",
    "stepfuse.cli": "engine/cli",
    "stepfuse.files": "engine/files",
    "stepfuse.fitting": "engine/fitting",
    "stepfuse.integrations": "engine/integrations",
    "stepfuse.integrations.diffusers": "engine/integrations/diffusers",
    "stepfuse.integrations.ray": "engine/integrations/ray",
    "stepfuse.integrations.readers": "engine/integrations/readers",
    "stepfuse.lora": "engine/lora",
    "stepfuse.pipeline": "engine/pipeline",
    "stepfuse.requests": "engine/requests",
    "stepfuse.samplers": "engine/samplers",
    "stepfuse.server": "engine/server",
    "stepfuse.serving": "engine/serving",
    "stepfuse.tensorrt": "engine/tensorrt",
    "stepfuse.kernels": "kernels",
    "stepfuse.export": "export",
    "stepfuse.export.lora": "export/lora",
    "stepfuse.export.onnx": "export/onnx",
    "stepfuse.export.pipelines": "export/pipelines",
    "stepfuse.export.quantization": "export/quantization",
    "stepfuse.export.tensorrt": "export/tensorrt",
}

SOURCES = Path("csrc")
MSVC = ["/O2", "/fp:precise", "/W3", "/utf-8", "/DNOMINMAX"]  # precise: no FMA, as below
GCC_AND_CLANG = [
    "-O3",
    "-ffp-contract=off",  # no FMA: all instruction sets, chosen at run time, give the same bits
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wall",
    "-Wextra",
    "-Wno-psabi",
]

core = Pybind11Extension(
    "stepfuse._core",
    sorted(str(path) for path in SOURCES.rglob("*.cpp")),
    depends=sorted(str(path) for path in [*SOURCES.rglob("*.h"), *SOURCES.rglob("*.inl")]),
    cxx_std=17,
    extra_compile_args=MSVC if sys.platform == "win32" else GCC_AND_CLANG,
)

ParallelCompile("STEPFUSE_BUILD_JOBS", default=0).install()
setup(package_dir=PACKAGES, packages=list(PACKAGES), ext_modules=[core])
