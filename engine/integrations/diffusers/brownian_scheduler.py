"""``DPMSolverSDEScheduler``, whose noise is that of one Brownian path: it needs the package torchsde."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import torch
from diffusers.schedulers import scheduling_dpmsolver_sde as theirs

from stepfuse.integrations.diffusers.fused_scheduler import Generators
from stepfuse.integrations.diffusers.table_scheduler import TableScheduler


class DPMSolverSDEScheduler(TableScheduler, theirs.DPMSolverSDEScheduler):
    """``diffusers.DPMSolverSDEScheduler`` by the fused step, with the noise of diffusers' own path.

    Examples:
        >>> from stepfuse.integrations.diffusers import DPMSolverSDEScheduler  # doctest: +SKIP
        >>> scheduler = DPMSolverSDEScheduler.from_config(pipe.scheduler.config)  # doctest: +SKIP
    """

    own_entries = MappingProxyType({"noise_sampler_seed": None})
    noise_sampler: Any  # diffusers' own, new with each run

    def _noise(
        self, index: int, model_output: torch.Tensor, sample: torch.Tensor, generator: Generators
    ) -> torch.Tensor | None:
        """What the path changes by, less what the step's first stage has seen of it."""
        sigmas = self.sigmas
        if self.noise_sampler is None:
            bounds = sigmas[sigmas > 0].min().item(), sigmas.max().item()
            self.noise_sampler = theirs.BrownianTreeNoiseSampler(sample, *bounds, self.noise_sampler_seed)
        is_second = index % 2
        # Through logarithms, as diffusers finds them: a path is the same only at the same places.
        begin, end = sigmas[index - is_second].log().neg(), sigmas[index - is_second + 1].log().neg()
        if end.isinf():
            return None  # the last step adds none
        middle = (begin + 0.5 * (end - begin)).neg().exp()
        begin, end = begin.neg().exp(), end.neg().exp()
        if not is_second:
            self.mid_point_sigma = middle  # scales the second stage's input
            self._first_noise = self.noise_sampler(begin, middle)
            return self._first_noise
        share = (begin - middle) / (begin - end)
        return (self.noise_sampler(begin, end) - share.sqrt() * self._first_noise) / (1 - share).sqrt()
