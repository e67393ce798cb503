"""Stand-ins for a pipeline's network and scheduler while the engine draws.

A pipeline's own call does all that it does: it checks, encodes, noises, calls back, shows progress, decodes. In its
loop it asks the network for a prediction and hands that to the scheduler. Here the network only notes what it is told,
and the scheduler's step has the engine do the forward, the guidance and the step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from types import SimpleNamespace
from typing import Any

import torch


class StandIn:
    """Passes for another object in all but what a subclass does itself."""

    def __init__(self, original: Any, **own: Any) -> None:
        self.__dict__.update(own, _original=original)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:  # isinstance asks for it
        return type(self._original)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._original, name, value)


class Told:
    """What a network was told in one call, beside the states.

    Attributes:
        rows: Rows of its batch: two an image with guidance.
        sample: What it was given as states; their numbers are not used.
        timestep: What it was given as timestep.
    """

    def __init__(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        inputs = dict(enumerate(args)) | dict(kwargs)  # by position or name, in one
        self._sample_key = next(key for key in (0, "sample", "hidden_states") if key in inputs)
        self._timestep_key = 1 if 1 in inputs else "timestep"
        self.sample: torch.Tensor = inputs.pop(self._sample_key)
        self.timestep = inputs.pop(self._timestep_key)
        inputs.pop("return_dict", None)
        self._inputs = inputs
        self.rows = len(self.sample)
        self._picked: dict[bytes, dict[Any, Any]] = {}

    def __eq__(self, other: object) -> bool:
        """Whether the same tensors were told, states and timestep aside."""
        return isinstance(other, Told) and self._marks() == other._marks()

    __hash__ = None  # type: ignore[assignment]

    def named(self) -> dict[str, torch.Tensor]:
        """The tensors that have a row for each of the batch, by the innermost name that they were told under."""
        return {
            name: leaf for name, leaf in _leaves(self._inputs) if isinstance(leaf, torch.Tensor) and self._is_rows(leaf)
        }

    def arguments(
        self, sample: torch.Tensor, timestep: torch.Tensor, index: torch.Tensor
    ) -> tuple[list[Any], dict[str, Any]]:
        """The arguments of the same call for other states, with these of the rows told."""
        key = index.numpy().tobytes()
        if key not in self._picked:  # the same from step to step
            there = index.to(self.sample.device)
            self._picked = {key: _mapped(self._inputs, lambda leaf: leaf[there] if self._is_rows(leaf) else leaf)}
        inputs = {**self._picked[key], self._sample_key: sample, self._timestep_key: timestep}
        args = [inputs.pop(place) for place in sorted(key for key in inputs if isinstance(key, int))]
        return args, {**inputs, "return_dict": False}

    def _is_rows(self, leaf: torch.Tensor) -> bool:
        return leaf.ndim > 0 and len(leaf) == self.rows

    def _marks(self) -> list[tuple[str, Any]]:
        return [(name, _mark(leaf)) for name, leaf in _leaves(self._inputs)]


class NetworkStandIn(StandIn):
    """A network that notes what it is told and predicts nothing."""

    def __init__(self, module: Any) -> None:
        super().__init__(module, _told=[])

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Zeros, in the form that is asked for, which broadcast against what they stand for."""
        told = Told(args, kwargs)
        self._told.append(told)
        channels = int(getattr(self._original.config, "out_channels", None) or told.sample.shape[1])
        nothing = told.sample.new_zeros(told.rows, channels, *[1] * (told.sample.ndim - 2))
        return (nothing,) if kwargs.get("return_dict") is False else SimpleNamespace(sample=nothing)

    def take(self) -> Told:
        """What it was told since this was last asked.

        Raises:
            ValueError: If it was called more than once for one step, whose prediction is then more than guidance.
        """
        calls: list[Told] = list(self._told)
        self._told.clear()
        if len(calls) != 1:
            raise ValueError(
                f"the network must be called once a step, got {len(calls)} calls: leave out what needs more, such as"
                " skip_guidance_layers, or call pipe.original"
            )
        return calls[0]


class SchedulerStandIn(StandIn):
    """A scheduler whose step is somebody else's.

    Args:
        scheduler: It still says which timesteps there are, and noises what a run begins with.
        step: ``step(timestep, sample, **options)``, gives the next sample.

    Attributes:
        custom: ``timesteps`` and ``sigmas`` that it was set to.
        scales: Whether the pipeline asks it to scale what the network sees.
    """

    def __init__(self, scheduler: Any, step: Callable[..., torch.Tensor]) -> None:
        @wraps(scheduler.set_timesteps)  # pipelines look which arguments there are
        def set_timesteps(*args: Any, **kwargs: Any) -> None:
            self.__dict__["custom"] = {name: kwargs.get(name) for name in ("timesteps", "sigmas")}
            scheduler.set_timesteps(*args, **kwargs)

        @wraps(scheduler.step)
        def stepped(prediction: torch.Tensor, timestep: Any, sample: torch.Tensor, **options: Any) -> Any:
            as_object = options.pop("return_dict", True)
            after = step(timestep, sample, **options)
            return SimpleNamespace(prev_sample=after) if as_object else (after,)

        super().__init__(scheduler, set_timesteps=set_timesteps, step=stepped, custom={}, scales=False)

    def scale_model_input(self, sample: torch.Tensor, timestep: Any = None) -> torch.Tensor:
        """Leaves the sample as it is: the engine scales what its network sees."""
        self.__dict__["scales"] = True
        return sample


def _leaves(inputs: Mapping[Any, Any] | list[Any] | tuple[Any, ...], name: str = "") -> Iterator[tuple[str, Any]]:
    """What dicts and lists hold in the end, each with the innermost name above it."""
    items = inputs.items() if isinstance(inputs, Mapping) else ((name, one) for one in inputs)
    for key, value in items:
        if isinstance(value, Mapping | list | tuple):
            yield from _leaves(value, str(key))
        else:
            yield str(key), value


def _mapped(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """The same dicts and lists with each tensor changed."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _mapped(one, change) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_mapped(one, change) for one in value]
    return value


def _mark(leaf: Any) -> Any:
    """What tells whether a leaf is still the same; a tensor may be changed in place."""
    if isinstance(leaf, torch.Tensor):
        return id(leaf), None if leaf.is_inference() else leaf._version
    return leaf
