"""The inputs of one call of a pipeline's network, recorded to be repeated with other states."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch


class NetworkInputs:
    """What a network is called with: states, timestep, and its conditioning.

    Two are equal if they have the same rows and hold the same tensors, states and timestep aside.

    Args:
        args: Positional arguments of the call.
        kwargs: Its keyword arguments.

    Attributes:
        rows: Rows of the batch: two an image with guidance.
        sample: The states; only their shape, dtype and device are used.
        timestep: The timestep.
    """

    def __init__(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        inputs = dict(enumerate(args)) | dict(kwargs)  # by position or name, in one
        self._sample_key = next(key for key in (0, "sample", "hidden_states") if key in inputs)
        self._timestep_key = 1 if 1 in inputs else "timestep"
        self.sample: torch.Tensor = inputs.pop(self._sample_key)
        self.timestep = inputs.pop(self._timestep_key)
        inputs.pop("return_dict", None)
        self._conditioning = inputs
        self.rows = len(self.sample)
        self._selected: dict[bytes, dict[Any, Any]] = {}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NetworkInputs) and self._identity() == other._identity()

    __hash__ = None  # type: ignore[assignment]

    @property
    def takes_any_timestep(self) -> bool:
        """Whether timesteps need not be whole."""
        return isinstance(self.timestep, torch.Tensor) and self.timestep.is_floating_point()

    def conditioning(self) -> dict[str, torch.Tensor]:
        """The tensors with a row for each of the batch, by the innermost name under which the call passes them."""
        return {
            name: leaf
            for name, leaf in leaves(self._conditioning)
            if isinstance(leaf, torch.Tensor) and self._has_rows(leaf)
        }

    def unbatched(self) -> list[str]:
        """Names of what is passed beside: neither None nor a tensor with a row for each of the batch."""
        return [
            name
            for name, leaf in leaves(self._conditioning)
            if leaf is not None and not (isinstance(leaf, torch.Tensor) and self._has_rows(leaf))
        ]

    def arguments(
        self, sample: torch.Tensor, timestep: torch.Tensor, index: torch.Tensor | None = None
    ) -> tuple[list[Any], dict[str, Any]]:
        """Arguments for a call on other states.

        Args:
            sample: The states, R rows.
            timestep: Shape (R,).
            index: Shape (R,), on the CPU, rising: which recorded row each of them has its conditioning from; None: all.

        Returns:
            Positional and keyword arguments; the network returns a tuple.

        Raises:
            ValueError: If only some rows are asked for, and a tensor has neither a row for each of them nor one for
                all.
        """
        inputs = {**self._conditioning_of(index), self._sample_key: sample, self._timestep_key: timestep}
        args = [inputs.pop(position) for position in sorted(key for key in inputs if isinstance(key, int))]
        return args, {**inputs, "return_dict": False}

    def _conditioning_of(self, index: torch.Tensor | None) -> dict[Any, Any]:
        """That of some rows; the last selection is kept: it is the same from step to step."""
        if index is None or len(index) == self.rows:
            return self._conditioning
        key = index.numpy().tobytes()
        if key not in self._selected:
            rows = index.to(self.sample.device)
            self._selected = {key: mapped(self._conditioning, lambda leaf: self._select(leaf, rows))}
        return self._selected[key]

    def _select(self, leaf: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        if self._has_rows(leaf):
            return leaf[rows]
        if leaf.ndim > 0 and len(leaf) > 1:
            raise ValueError(
                f"conditioning must have a row for each of the network's {self.rows}, or one for all, got a tensor of"
                f" shape {tuple(leaf.shape)} where the guidance scale is 0 or 1: call pipe.original"
            )
        return leaf

    def _has_rows(self, leaf: torch.Tensor) -> bool:
        return leaf.ndim > 0 and len(leaf) == self.rows

    def _identity(self) -> tuple[int, list[tuple[str, Any]]]:
        return self.rows, [(name, _identity_of(leaf)) for name, leaf in leaves(self._conditioning)]


def leaves(inputs: Mapping[Any, Any] | list[Any] | tuple[Any, ...], name: str = "") -> Iterator[tuple[str, Any]]:
    """The values inside nested dicts and lists, each with the innermost name above it."""
    items = inputs.items() if isinstance(inputs, Mapping) else ((name, one) for one in inputs)
    for key, value in items:
        if isinstance(value, Mapping | list | tuple):
            yield from leaves(value, str(key))
        else:
            yield str(key), value


def mapped(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """The same dicts and lists with each tensor changed."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {key: mapped(one, change) for key, one in value.items()}
    if isinstance(value, list | tuple):
        changed = [mapped(one, change) for one in value]
        return tuple(changed) if isinstance(value, tuple) else changed
    return value


def _identity_of(leaf: Any) -> Any:
    """Equal as long as a leaf is the same; a tensor may be changed in place, which its version shows."""
    if isinstance(leaf, torch.Tensor):
        return id(leaf), None if leaf.is_inference() else leaf._version
    return leaf
