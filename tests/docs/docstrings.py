"""The docstrings of public names, as the reference shows them: objects', values' in the source, the core's stubs."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import public_names

import stepfuse

_FOLDER = Path(stepfuse.__file__).parent
_CORE = _FOLDER / "_core.pyi"
#: Names that the reference describes itself: a text and a module.
PLAIN = ("stepfuse.__version__", "stepfuse.samplers")


def public() -> Iterator[tuple[str, str]]:
    """Names of functions, classes and values, once each, with their docstrings; empty where there is none."""
    seen = set()
    for module in map(import_module, public_names.MODULES):
        for name in module.__all__:
            path = f"{module.__name__}.{name}"
            home, text = _described(module.__name__, name)
            if path not in PLAIN and home not in seen:
                seen.add(home)
                yield path, text


def members(path: str) -> Iterator[tuple[str, str]]:
    """Public methods and properties of a class of the package's own, with their docstrings."""
    module, _, name = path.rpartition(".")
    if name.endswith("Scheduler"):  # diffusers' classes have theirs
        return
    value = getattr(import_module(module), name)
    if public_names.is_class(value) and not issubclass(value, Exception):
        own = {one for kind in value.__mro__ if kind.__module__.startswith("stepfuse") for one in vars(kind)}
        fields = getattr(value, "__dataclass_fields__", {})
        for one in sorted(own - set(fields)):
            member = inspect.getattr_static(value, one)
            if not one.startswith("_") and (callable(getattr(value, one)) or isinstance(member, property)):
                yield one, inspect.getdoc(member) or inspect.getdoc(getattr(value, one)) or ""


def bases(path: str) -> Iterator[str]:
    """Docstrings of a class and of those of the package that it is made of."""
    module, _, name = path.rpartition(".")
    value = getattr(import_module(module), name)
    if public_names.is_class(value):
        yield from (kind.__doc__ or "" for kind in value.__mro__ if kind.__module__.startswith("stepfuse"))


def _described(module: str, name: str) -> tuple[str, str]:
    """Where a name is defined, which is the same for all modules that list it, and its docstring."""
    if name.endswith("Scheduler"):  # read, not imported: some need packages that few have
        for file in sorted((_FOLDER / "integrations" / "diffusers").glob("*.py")):
            if found := _in_source(file, name):
                return f"{file.stem}.{name}", found
        return name, ""
    value = getattr(import_module(module), name)
    if public_names.is_class(value) and value.__module__ in ("stepfuse", "stepfuse._core"):  # of the core
        return value.__name__, _in_source(_CORE, value.__name__)
    if public_names.is_class(value) or inspect.isfunction(value):
        return f"{value.__module__}.{value.__qualname__}", inspect.getdoc(value) or ""
    files = sorted(Path(import_module(module).__file__ or "").parent.rglob("*.py"))
    return name, next((found for file in files if (found := _in_source(file, name))), "")


def _in_source(file: Path, name: str) -> str:
    """The docstring of a class, or what stands below an assignment."""
    body = ast.parse(file.read_text(encoding="utf-8")).body
    body += [one for node in body if isinstance(node, ast.ClassDef) for one in node.body]
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.ClassDef) and node.name == name:
            return ast.get_docstring(node) or ""
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(one, ast.Name) and one.id == name for one in targets) and isinstance(after, ast.Expr):
            return inspect.cleandoc(str(ast.literal_eval(after.value)))
    return ""
