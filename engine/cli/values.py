"""Values of options that need no check: typer (0.29) imports pydantic for the first that it checks, even one left out.

What is left out, text, and whole numbers within their bounds are taken as they are; all else, and so every error, is
typer's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

_WHOLE = re.compile(r"[+-]?[0-9]{1,18}")


def without_needless_checks(params: Iterable[Any]) -> None:
    """Has parameters of a command take values that are right already; those of a typer that needs no pydantic stay."""
    for param in params:
        if hasattr(param, "type_descriptor") and "process_value" not in vars(param):
            param.process_value = partial(_processed, param, param.process_value)


def _processed(param: Any, check: Callable[[Any, Any], Any], ctx: Any, value: Any) -> Any:
    """The value of a parameter, as ``check`` gives it."""
    described = param.type_descriptor
    kind, rule = described.annotation, described.parameter_info
    if value is None and not param.required:
        missing = () if param.multiple or param.nargs == -1 else None
        return missing if param.callback is None else param.callback(ctx, param, missing)
    if param.callback is not None or rule.parser is not None:
        return check(ctx, value)
    if kind is str and type(value) is str:
        return value
    if kind == list[str] and value and all(type(one) is str for one in value):
        return list(value)
    if kind is int and (type(value) is int or (isinstance(value, str) and _WHOLE.fullmatch(value))):
        number = int(value)
        if (rule.min is None or rule.min <= number) and (rule.max is None or number <= rule.max):
            return number
    return check(ctx, value)
