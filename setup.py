"""Build of the compiled core, and the map from the repository's folders to the one import name."""

from glob import glob

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension
from setuptools import setup

PACKAGES = {
    "stepfuse": "engine",
    "stepfuse.backends": "engine/backends",
    "stepfuse.kernels": "kernels",
    "stepfuse.export": "export",
}

core = Pybind11Extension(
    "stepfuse._core",
    sorted(glob("csrc/core/*.cpp") + glob("csrc/bindings/*.cpp")),
    depends=sorted(glob("csrc/*/*.h") + glob("csrc/*/*.inl")),
    cxx_std=17,
    # No -march: the kernels choose their instruction set at run time. No contraction to FMA: all sets give the same bits.
    extra_compile_args=["-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-Wall", "-Wextra", "-Wno-psabi"],
)

ParallelCompile("STEPFUSE_BUILD_JOBS", default=0).install()
setup(package_dir=PACKAGES, packages=list(PACKAGES), ext_modules=[core])
