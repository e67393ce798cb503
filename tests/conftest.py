"""What all tests share. ``import tolerances`` works in every test module; see ``tolerances.py``."""

import importlib.util
import os
import sys
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
_load("handmade")
_load("tiny_pipelines", "export")
_load("fake_tensorrt", "engine/backends/cuda")
_load("recording_driver", "cuda")

import stepfuse.engine  # noqa: E402

stepfuse.engine.CHECK_INVARIANTS = True


def pytest_configure(config):
    """The recording driver's fixtures serve the tests of csrc/cuda and of the back ends."""
    config.pluginmanager.register(sys.modules["recording_driver"])


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """``exported(name)``: the bundle of a tiny pipeline, exported once."""
    made = {}

    def export(name):
        if name not in made:
            from stepfuse.export import from_diffusers

            folder = tmp_path_factory.mktemp("exported")
            source = sys.modules["tiny_pipelines"].save_tiny(name, folder / name)
            made[name] = from_diffusers(source, folder / "bundle")
        return made[name]

    return export
