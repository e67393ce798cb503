"""A flow's shift that follows from the size of what is drawn (Esser et al., 2024, section 5.3.2)."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from stepfuse.arguments import number, whole_number


@dataclass(frozen=True)
class DynamicShift:
    """As diffusers' pipelines have it: a line in the number of tokens, or e to the power of one.

    Attributes:
        base_shift: The line at ``base_tokens``.
        max_shift: The line at ``max_tokens``.
        base_tokens: A number of the transformer's image tokens, at least 1.
        max_tokens: Another, above it.
        exponential: Whether the shift is e to the power of the line, or the line itself.
    """

    base_shift: float = 0.5
    max_shift: float = 1.15
    base_tokens: int = 256
    max_tokens: int = 4096
    exponential: bool = True

    def __post_init__(self) -> None:
        for name in ("base_shift", "max_shift"):
            value = number(name, getattr(self, name))
            if not -20 <= value <= 20:
                raise ValueError(f"{name} must be between -20 and 20, got {value}")
        low, high = (whole_number(name, getattr(self, name)) for name in ("base_tokens", "max_tokens"))
        if not 1 <= low < high < 1 << 31:
            raise ValueError(f"base_tokens must be at least 1 and below max_tokens, got {low} and {high}")
        if not isinstance(self.exponential, bool):
            raise TypeError(f"exponential must be True or False, got {self.exponential!r}")

    @property
    def config(self) -> dict[str, Any]:
        """The arguments that make it again, as a manifest keeps them."""
        return asdict(self)

    def at(self, tokens: int) -> float:
        """The shift for this many tokens, as the samplers' ``shift``.

        Raises:
            ValueError: If it is not above 0 and finite.
        """
        slope = (self.max_shift - self.base_shift) / (self.max_tokens - self.base_tokens)
        line = self.base_shift + slope * (tokens - self.base_tokens)
        shift = math.exp(min(line, 700.0)) if self.exponential else line
        if not 0 < shift < 1e6:
            raise ValueError(f"shift must be above 0 and below 1e6 for {tokens} tokens, got {shift:g}")
        return shift
