"""What of stepfuse is public: names, parameters with their defaults, fields, and the command line's options.

    python tests/public_names.py          # writes tests/public_names.txt anew, which a test compares

Types are left out, since Python's versions write them differently.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, get_origin

FILE = Path(__file__).with_suffix(".txt")
#: Modules with ``__all__``; what another one has already is its own there.
MODULES = (
    *("stepfuse", "stepfuse.samplers", "stepfuse.benchmarking", "stepfuse.fitting"),
    *("stepfuse.interpolation", "stepfuse.analysis"),
    *("stepfuse.export", "stepfuse.kernels", "stepfuse.metrics", "stepfuse.server", "stepfuse.integrations.diffusers"),
    "stepfuse.integrations.ray",
)


def public() -> str:
    """All of it, a line each."""
    return "\n".join([*_names(), *_options()]) + "\n"


def is_class(value: Any) -> bool:
    """Whether a value is a class: an alias such as ``Callable[[], int]`` is none, whatever Python 3.10 says."""
    return inspect.isclass(value) and get_origin(value) is None


def _names() -> Iterator[str]:
    for module in map(import_module, MODULES):
        for name in sorted(module.__all__):
            path = f"{module.__name__}.{name}"
            if name.endswith("Scheduler"):  # of diffusers, whose classes have the signatures
                yield path
            else:
                yield from _described(path, getattr(module, name))


def _described(path: str, value: Any) -> Iterator[str]:
    if not is_class(value):
        yield f"{path}{_parameters(value)}" if callable(value) else path
        return
    bases = "".join(f" < {base.__name__}" for base in value.__mro__[1:] if base.__module__.startswith("stepfuse"))
    yield f"{path}{'' if issubclass(value, Exception | Warning) else _parameters(value)}{bases}"
    own = {name for kind in value.__mro__ if kind.__module__.startswith("stepfuse") for name in vars(kind)}
    fields = {field.name for field in dataclasses.fields(value)} if dataclasses.is_dataclass(value) else set()
    for name in sorted(own - fields):
        if not name.startswith("_"):
            member = inspect.getattr_static(value, name)
            takes = not isinstance(member, property) and callable(getattr(value, name))
            yield f"{path}.{name}{_parameters(getattr(value, name)) if takes else ''}"


def _parameters(value: Any) -> str:
    if get_origin(value) is not None:  # an alias of types
        return ""
    try:
        parameters = inspect.signature(value).parameters.values()
    except ValueError:  # of the core
        return ""
    shown = []
    for one in parameters:
        star = {one.VAR_POSITIONAL: "*", one.VAR_KEYWORD: "**"}.get(one.kind, "")
        if one.kind is one.KEYWORD_ONLY and not any(part.startswith("*") for part in shown):
            shown.append("*")
        plain = isinstance(one.default, bool | int | float | str | tuple | None)
        default = "" if one.default is one.empty else f"={one.default!r}" if plain else "=..."
        shown.append(f"{star}{one.name}{default}")
    return f"({', '.join(shown)})"


def _options() -> Iterator[str]:
    import typer

    from stepfuse.cli.app import app

    commands: Any = typer.main.get_command(app)
    for command in sorted(commands.commands):
        for option in commands.commands[command].params:
            names = ", ".join([*option.opts, *option.secondary_opts])
            yield f"$ stepfuse {command} {names if names.startswith('-') else names.upper()}"


if __name__ == "__main__":
    FILE.write_text(public())
