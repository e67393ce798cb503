"""Stand-ins for a pipeline's network and scheduler while the engine runs its loop.

A pipeline's own call does all that it does: it checks, encodes, noises, calls back, shows progress, decodes. In its
loop it calls the network for a prediction, which it passes to the scheduler's step. Here the network only records its
inputs, and the scheduler's step has the engine do the forward, the guidance and the step.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from types import SimpleNamespace
from typing import Any

import torch

from stepfuse.integrations.diffusers.network_inputs import NetworkInputs


class StandIn:
    """Behaves as another object, except in what a subclass defines itself."""

    def __init__(self, original: Any, **own: Any) -> None:
        self.__dict__.update(own, _original=original)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:  # isinstance asks for it
        return type(self._original)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._original, name, value)


class NetworkStandIn(StandIn):
    """A network that records the inputs of its calls and predicts nothing."""

    def __init__(self, module: Any) -> None:
        super().__init__(module, _calls=[])

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Zeros that broadcast to the prediction's shape, as a tuple or an object, whichever the caller asks for."""
        inputs = NetworkInputs(args, kwargs)
        self._calls.append(inputs)
        channels = int(getattr(self._original.config, "out_channels", None) or inputs.sample.shape[1])
        zeros = inputs.sample.new_zeros(inputs.rows, channels, *[1] * (inputs.sample.ndim - 2))
        return (zeros,) if kwargs.get("return_dict") is False else SimpleNamespace(sample=zeros)

    def take_inputs(self) -> NetworkInputs:
        """The inputs of the one call since this was last asked.

        Raises:
            ValueError: If there was not exactly one call: with more, the prediction is not guidance alone.
        """
        calls: list[NetworkInputs] = list(self._calls)
        self._calls.clear()
        if len(calls) != 1:
            raise ValueError(
                f"the network must be called once a step, got {len(calls)} calls: leave out what needs more, such as"
                " skip_guidance_layers, or call pipe.original"
            )
        return calls[0]


class SchedulerStandIn(StandIn):
    """A scheduler with another step.

    Args:
        scheduler: It still sets the timesteps, and noises the states that a run begins with.
        step: ``step(timestep, sample, **options)``, returns the next sample.

    Attributes:
        custom: The ``timesteps`` and ``sigmas`` that ``set_timesteps`` was last called with.
        scales: Whether the pipeline has it scale the network's input.
    """

    def __init__(self, scheduler: Any, step: Callable[..., torch.Tensor]) -> None:
        @wraps(scheduler.set_timesteps)  # pipelines inspect its signature
        def set_timesteps(*args: Any, **kwargs: Any) -> None:
            self.__dict__["custom"] = {name: kwargs.get(name) for name in ("timesteps", "sigmas")}
            scheduler.set_timesteps(*args, **kwargs)

        @wraps(scheduler.step)
        def replaced_step(prediction: torch.Tensor, timestep: Any, sample: torch.Tensor, **options: Any) -> Any:
            as_object = options.pop("return_dict", True)
            after = step(timestep, sample, **options)
            return SimpleNamespace(prev_sample=after) if as_object else (after,)

        super().__init__(scheduler, set_timesteps=set_timesteps, step=replaced_step, custom={}, scales=False)

    def scale_model_input(self, sample: torch.Tensor, timestep: Any = None) -> torch.Tensor:
        """Returns the sample unscaled: the engine scales its network's input."""
        self.__dict__["scales"] = True
        return sample
