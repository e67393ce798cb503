"""How a request stands among others: its priority, its times and its name."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from stepfuse.arguments import number, whole_number


class Submitted(Protocol):
    """A request of any kind, as its caller made it."""

    @property
    def priority(self) -> int:
        """Requests of a higher one step first."""

    @property
    def deadline(self) -> float | None:
        """Time on ``time.monotonic()`` by which its result is wanted."""

    @property
    def timeout(self) -> float | None:
        """Seconds after which it is given up."""

    @property
    def id(self) -> str | None:
        """What messages call it."""


@dataclass(frozen=True)
class Terms:
    """Checked. The attributes are a request's."""

    priority: int
    deadline: float | None
    timeout: float | None
    id: str | None

    @classmethod
    def of(cls, request: Submitted) -> Terms:
        """Those of a request.

        Raises:
            ValueError: If ``priority`` does not fit 32 bits, ``deadline`` or ``timeout`` is not finite, or ``timeout``
                is not above 0.
            TypeError: If a value is of the wrong kind.
        """
        priority = whole_number("priority", request.priority)
        if not -(1 << 31) <= priority < 1 << 31:
            raise ValueError(f"priority must fit 32 bits, got {priority}")
        if request.id is not None and not (isinstance(request.id, str) and request.id):
            raise TypeError(f"id must be a text of at least one character, got {request.id!r}")
        deadline, timeout = _seconds("deadline", request.deadline), _seconds("timeout", request.timeout)
        if timeout is not None and timeout <= 0:
            raise ValueError(f"timeout must be above 0 seconds, got {timeout}")
        return cls(priority, deadline, timeout, request.id)


def _seconds(name: str, given: float | None) -> float | None:
    if given is None:
        return None
    seconds = float(number(name, given))
    if not math.isfinite(seconds):
        raise ValueError(f"{name} must be finite, got {seconds}")
    return seconds
