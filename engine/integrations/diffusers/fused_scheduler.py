"""What all schedulers here share, whether they make a row a step or a table a run."""

from __future__ import annotations

from typing import Any, TypeAlias, cast

import torch
from diffusers.utils.torch_utils import randn_tensor

Generators: TypeAlias = "torch.Generator | list[torch.Generator] | None"


class FusedScheduler:
    """What the schedulers share.

    Attributes:
        remedy: What to do where this class cannot step, for messages; empty: take the class of diffusers.
        leaves_runs: Whether a run that is refused at its first step is left to diffusers' own code instead.
    """

    remedy = ""
    leaves_runs = False

    def register_to_config(self, **kwargs: Any) -> None:
        """As ``diffusers.ConfigMixin.register_to_config``, which the constructor calls."""
        super().register_to_config(**kwargs)  # type: ignore[misc]
        if type(self).__module__.startswith(__name__.rpartition(".")[0]):
            self.__module__ = "diffusers"  # the library that model_index.json names where a pipeline is saved

    def forget(self) -> None:
        """Leaves no more of the attributes than diffusers' class would."""
        for name in ("remedy", "leaves_runs", "_run", "_is_left", "_given", "_first_noise", "_cached_numbers"):
            self.__dict__.pop(name, None)

    def _require_steps(self) -> int:
        steps: int | None = getattr(self, "num_inference_steps", None)
        if steps is None:
            raise ValueError("set_timesteps must be called before step, got num_inference_steps None")
        return steps


def noise_like(like: torch.Tensor, generator: Generators, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Standard normal noise of a tensor's shape and, unless another is given, dtype, drawn as diffusers draws it."""
    noise = randn_tensor(like.shape, generator=generator, device=like.device, dtype=dtype or like.dtype)
    return cast("torch.Tensor", noise)
