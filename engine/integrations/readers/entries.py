"""The entries of a scheduler's configuration, with the defaults of its class."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from stepfuse.integrations.scheduler_entries import DEFAULTS


class EntryError(ValueError):
    """An entry that is not covered; other classes may do without it."""


class Entries(Mapping[str, Any]):
    """A configuration with its class's defaults filled in.

    Attributes:
        given: All entries, those of other classes among them.
    """

    def __init__(self, name: str, values: Mapping[str, Any]) -> None:
        self.name = name
        self.given = values
        self._values = {key: values.get(key, default) for key, default in DEFAULTS[name].items()}

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __iter__(self) -> Any:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def require(self, key: str, *allowed: Any, why: str = "") -> Any:
        """The value of an entry that must be one of ``allowed``."""
        value = self._values[key]
        if value not in allowed:
            self.refuse(key, value, " or ".join(repr(one) for one in allowed) + why)
        return value

    def number(self, key: str, rule: str = "a number", holds: Callable[[float], bool] = math.isfinite) -> float:
        """The value of an entry that must be a number, and of which ``holds`` is true."""
        value = self._values[key]
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"{self.name}: {key} must be {rule}, got {value!r}")
        if not holds(value):
            raise ValueError(f"{self.name}: {key} must be {rule}, got {value!r}")
        return float(value)

    def refuse(self, key: str, value: Any, rule: str) -> NoReturn:
        """Refuses an entry that changes the numbers in a way that is not covered."""
        raise EntryError(f"{self.name}: {key} must be {rule}, got {value!r}")
