"""What all tests share. ``import tolerances`` works in every test module; see ``tolerances.py``."""

import fcntl
import hashlib
import importlib.util
import os
import shutil
import sys
import time
from importlib import metadata
from pathlib import Path

import pytest

# Tests in several processes (pytest -n) are held to a processor each: the libraries' threads, one for each processor
# that a process may use and waiting actively, would otherwise keep those of the other tests from running.
if (worker := os.environ.get("PYTEST_XDIST_WORKER")) and hasattr(os, "sched_setaffinity"):
    processors = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {processors[int(worker.removeprefix("gw")) % len(processors)]})

# Without a GPU the Triton kernels run in its interpreter, which has to be chosen before anything imports Triton, and
# diffusers does. With a GPU the same tests run what is compiled; TRITON_INTERPRET=1 asks for the interpreter there.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")


def _load(name: str, folder: str = "") -> None:
    # Tests are imported by file, without tests/ on sys.path: its folders are named like PyPI packages.
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


_load("tolerances")
_load("support")
_load("peers")
_load("public_names")
_load("saved_schedulers")
_load("handmade")
_load("figure_overlaps")
_load("interrupts")
_load("http_service")
_load("tiny_pipelines", "export")
_load("tiny_transformers", "export")
_load("lora_files", "export")
_load("docstrings", "docs")
_load("fake_tensorrt", "engine/backends/cuda")
_load("recording_driver", "cuda")
_load("fake_onnxruntime", "engine/backends/cuda")
_load("recording_torch", "engine/backends/cuda")
_load("engine_on_fake", "engine/backends/cuda")
_load("cuda_toolkit", "cuda")
_load("chromium", "engine/server")

import stepfuse.engine  # noqa: E402

stepfuse.engine.CHECK_INVARIANTS = True


def pytest_configure(config):
    """The recording driver's fixtures serve the tests of csrc/cuda and of the back ends."""
    config.pluginmanager.register(sys.modules["recording_driver"])
    config.pluginmanager.register(sys.modules["fake_onnxruntime"])
    config.pluginmanager.register(sys.modules["engine_on_fake"])


@pytest.fixture(scope="session", params=["onnxruntime", "openvino"])
def backend(request, tmp_path_factory):
    """What ``backend=`` takes, for each library that runs a bundle on the CPU; compiled networks stay in this run."""
    if request.param == "onnxruntime":
        return "onnxruntime"
    pytest.importorskip("openvino")
    return stepfuse.OpenVino(cache=tmp_path_factory.mktemp("compiled"))


@pytest.fixture(scope="session")
def kept(pytestconfig, tmp_path_factory):
    """``kept(name, make)``: a folder that ``make(folder)`` fills, once for all processes and runs of the same code.

    Exports take most of a minute, and several test files and both sets of tests want the same ones. They are made again
    when the package, what makes them or an installed distribution changes; ``pytest --cache-clear`` removes them.
    """
    sources = [*sorted(Path(stepfuse.__file__).parent.rglob("*.py")), Path(sys.modules["tiny_pipelines"].__file__)]
    code = hashlib.sha256(sys.version.encode())
    code.update(repr(sorted((one.name, one.version) for one in metadata.distributions())).encode())
    for source in sources:
        code.update(source.read_bytes())
    has_cache = hasattr(pytestconfig, "cache")  # without it (-p no:cacheprovider) a process keeps its own
    base = Path(pytestconfig.cache.mkdir("kept")) if has_cache else tmp_path_factory.mktemp("kept")

    def keep(name, make):
        digest = code.copy()
        digest.update(Path(make.__code__.co_filename).read_bytes())
        folder = base / f"{name}-{digest.hexdigest()[:16]}"
        with (base / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.exists():
                for earlier in base.glob(f"{name}-{'?' * 16}"):
                    if time.time() - earlier.stat().st_mtime > 86400:  # no other environment's tests use it any more
                        shutil.rmtree(earlier)
                unfinished = base / f"{name}.new"
                shutil.rmtree(unfinished, ignore_errors=True)
                unfinished.mkdir()
                make(unfinished)
                unfinished.rename(folder)
            os.utime(folder)
        return folder

    return keep


@pytest.fixture(scope="session")
def exported(kept):
    """``exported(name)``: the bundle of a tiny pipeline, whose folder lies beside it."""

    def export(name):
        def make(folder):
            from stepfuse.export import from_diffusers

            tiny = sys.modules["tiny_pipelines"]
            saved = tiny.save_tiny(name, folder / name)
            from_diffusers(saved, folder / f"{name}-bundle", size=tiny.OWN_SIZES.get(name))

        return stepfuse.Bundle.load(kept(name, make) / f"{name}-bundle")

    return export
