"""What all tests share. ``import tolerances`` works in every test module; see ``tolerances.py``."""

import importlib.util
import sys
from pathlib import Path


def _load(name: str) -> None:
    # Tests are imported by file, without tests/ on sys.path: its folders are named like PyPI packages.
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


_load("tolerances")
_load("support")
_load("peers")

import stepfuse.engine  # noqa: E402

stepfuse.engine.CHECK_INVARIANTS = True
