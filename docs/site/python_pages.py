"""A page for each public module, with every name that it lists; the text is its docstrings'."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path

_NAMES = Path(__file__).parents[2] / "tests" / "public_names.py"


def modules() -> tuple[str, ...]:
    """The public modules, as the test of public names has them."""
    spec = importlib.util.spec_from_file_location("public_names", _NAMES)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return tuple(module.MODULES)


def navigation() -> list[tuple[str, str]]:
    """Names of modules with their pages."""
    return [(name, f"reference/{name}.md") for name in modules()]


def pages() -> Iterator[tuple[str, str]]:
    """Pages with their text: a directive of mkdocstrings for each name, classes last but for errors."""
    for name, page in navigation():
        module = importlib.import_module(name)
        about = (module.__doc__ or "").strip()
        parts = [f"# {name}", about]
        for public in sorted(module.__all__, key=lambda one: _kind(module, one)):
            if public == "__version__":
                parts.append("## `__version__`\n\nThe installed version, a text such as `0.1.0`.")
            elif public == "samplers":
                parts.append("## `samplers`\n\nThe module of samplers: [stepfuse.samplers](stepfuse.samplers.md).")
            elif not (name != "stepfuse" and public in importlib.import_module("stepfuse").__all__):
                of_diffusers = "\n    options: {members: false}" if public.endswith("Scheduler") else ""
                parts.append(f"::: {name}.{public}{of_diffusers}")
            else:
                parts.append(f"## `{public}`\n\nIt is [stepfuse.{public}](stepfuse.md#stepfuse.{public}).")
        yield page, "\n\n".join(parts) + "\n"


def _kind(module: object, name: str) -> tuple[int, str]:
    """Classes, then functions and values, then errors and warnings, each in the order of their names."""
    if name.endswith("Scheduler"):  # those of diffusers are not imported: some need packages that few have
        return 0, name
    value = getattr(module, name)
    if isinstance(value, type):
        return (2 if issubclass(value, Exception) else 0), name
    return 1, name
