"""Noise levels that were searched for a model and published, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from stepfuse.arguments import whole_number


@dataclass(frozen=True)
class PublishedLevels:
    """A list of noise levels for a fixed number of steps, and what follows from it for others.

    Attributes:
        levels: Noise over signal, falling: where each step begins, and last where the list ends above 0.
        timesteps: The training timesteps of the steps; None where the model has no whole ones.
    """

    levels: tuple[float, ...]
    timesteps: tuple[int, ...] | None = None

    @property
    def sigmas(self) -> tuple[float, ...]:
        """The levels as ``sigmas`` of a sampler: the last step leads to the clean sample, 0."""
        return (*self.levels[:-1], 0.0)

    def at(self, steps: int) -> tuple[float, ...]:
        """``sigmas`` for another number of steps: the logarithm of the levels is interpolated, as the authors do it.

        Args:
            steps: At least 1; with the list's own number, its levels.

        Raises:
            ValueError: If ``steps`` is below 1.
            TypeError: If it is no whole number.
        """
        if whole_number("steps", steps) < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        places = np.linspace(0, len(self.levels) - 1, steps + 1)
        levels = np.exp(np.interp(places, np.arange(len(self.levels)), np.log(self.levels)))
        return (*levels[:-1].tolist(), 0.0)


AYS: Mapping[str, PublishedLevels] = MappingProxyType(
    {
        "sd15": PublishedLevels(
            (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
            (999, 850, 736, 645, 545, 455, 343, 233, 124, 24),
        ),
        "sdxl": PublishedLevels(
            (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
            (999, 845, 730, 587, 443, 310, 193, 116, 53, 13),
        ),
        "deepfloyd-if": PublishedLevels((160.41, 8.081, 3.315, 1.885, 1.207, 0.785, 0.553, 0.293, 0.186, 0.030, 0.006)),
        "svd": PublishedLevels((700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002)),
    }
)
"""Published noise levels by the model they are for.

"Align your steps" (Sabour et al., 2024), Table 3, for ten steps; timesteps are those of diffusers' ``AysSchedules``.

Examples:
    >>> sorted(sf.samplers.AYS)
    ['deepfloyd-if', 'sd15', 'sdxl', 'svd']
    >>> sigmas = sf.samplers.AYS["sd15"].at(8)  # for eight steps
    >>> table = sf.samplers.dpmpp_2m(sf.NoiseSchedule.scaled_linear(), sigmas=sigmas[:-1])
    >>> len(table)
    8
"""
