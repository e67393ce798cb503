"""Linear forms over what a step reads: a multistep sampler is written as its paper's recurrence, and becomes rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from stepfuse.samplers.schedule import Float64Array

# What a step writes, with the first letter of its columns.
_WRITTEN = {"x": "q", "h": "u", "h2": "v", "h3": "w"}


@dataclass(frozen=True)
class Form:
    """A weighted sum of what a step reads, in float64.

    Attributes:
        weights: By the letter of the column: ``x``, ``d``, ``e``, ``u`` (the unconditional prediction), ``h``, ``h2``,
            ``h3``, ``z``.
    """

    weights: Mapping[str, float] = field(default_factory=dict)

    def __add__(self, other: Form) -> Form:
        names = dict.fromkeys((*self.weights, *other.weights))
        return Form({name: self.weights.get(name, 0.0) + other.weights.get(name, 0.0) for name in names})

    def __sub__(self, other: Form) -> Form:
        return self + -1.0 * other

    def __rmul__(self, factor: float) -> Form:
        return Form({name: float(factor * weight) for name, weight in self.weights.items()})

    @property
    def reads(self) -> set[str]:
        """Names whose weight is not 0."""
        return {name for name, weight in self.weights.items() if weight != 0}


ZERO = Form()
X, D, E, H, H2, H3, Z = (Form({name: 1.0}) for name in ("x", "d", "e", "h", "h2", "h3", "z"))


@dataclass(frozen=True)
class Update:
    """What a step leaves, each a form of what was there before it: the next state and the history registers."""

    x: Form
    h: Form = ZERO
    h2: Form = ZERO
    h3: Form = ZERO


def columns_of(updates: Sequence[Update]) -> dict[str, Float64Array]:
    """The columns of these updates, a row each.

    A register is kept only where the next row reads it. A column of zeros is left out, so that a sampler which needs no
    second line has none.

    Raises:
        ValueError: If the first update reads a register, which nothing has kept.
    """
    columns: dict[str, Float64Array] = {}
    needed = {"x"}
    for row, update in reversed(list(enumerate(updates))):
        forms: dict[str, Form] = {written: getattr(update, written) for written in needed}
        for written, form in forms.items():
            for name in form.reads:
                column = columns.setdefault(f"{_WRITTEN[written]}_{name}", np.zeros(len(updates)))
                column[row] = form.weights[name]
        needed = {"x"}.union(*(form.reads & set(_WRITTEN) for form in forms.values()))
    if needed != {"x"}:
        raise ValueError(f"the first step must read no register, got {', '.join(sorted(needed - {'x'}))}")
    return columns
