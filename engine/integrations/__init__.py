"""stepfuse inside other libraries."""

from importlib import import_module
from typing import Any


def __getattr__(name: str) -> Any:
    if name not in ("diffusers", "ray"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module(f"{__name__}.{name}")
