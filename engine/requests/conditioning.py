"""From a caller's ``cond`` to a value for each conditioning input of each sample."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from stepfuse.bundle.cond_input import CondInput
from stepfuse.display import listed


def cond_per_sample(
    inputs: Mapping[str, CondInput], given: Any, count: int, argument: str = "cond"
) -> list[list[npt.NDArray[Any]] | None]:
    """Each sample's conditioning: a value an input in the inputs' order; None where all are null (unconditional).

    Args:
        inputs: The network's conditioning inputs by name.
        given: One value or one a sample where there is one input, otherwise a dict of these by name. None is null.
        count: Number of samples.
        argument: What messages call ``given``.

    Raises:
        ValueError: If a name is unknown, or ``CondInput.value`` finds something.
        TypeError: If there are several inputs and ``given`` is no dict.
    """
    if not inputs:
        if given is not None:
            raise ValueError(f"this model takes no conditioning, got {given!r}")
        return [None] * count
    if given is None:
        return [None] * count
    if not isinstance(given, Mapping):
        if len(inputs) > 1:
            raise TypeError(f"{argument} must be a dict with any of {', '.join(inputs)}, got {type(given).__name__}")
        given, called = {next(iter(inputs)): given}, {next(iter(inputs)): argument}
    else:
        called = {}
    unknown = set(given) - set(inputs)
    if unknown:
        raise ValueError(
            f"{argument} must have names among {', '.join(inputs)}, got {listed(sorted(unknown, key=str))}"
        )
    columns = [spec.values(called.get(name, name), given.get(name), count) for name, spec in inputs.items()]
    nulls = [spec.value(name, None) for name, spec in inputs.items()]
    rows: list[list[npt.NDArray[Any]] | None] = []
    for values in zip(*columns, strict=True):
        conditional = any(not _same(value, null) for value, null in zip(values, nulls, strict=True))
        rows.append(list(values) if conditional else None)
    return rows


def _same(value: npt.NDArray[Any], null: npt.NDArray[Any]) -> bool:
    """Whether they are equal; of one number, Python says so sooner than numpy."""
    return bool(value.item() == null.item()) if not value.ndim else np.array_equal(value, null)
