"""CogVideoX' schedulers, whose noise levels are shifted: rows are made a step at a time from the levels they hold."""

from __future__ import annotations

from operator import index
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput

from stepfuse.integrations.diffusers.fused_scheduler import Generators, noise_like
from stepfuse.integrations.diffusers.scheduler_rows import UnsupportedStep, ddim_row, dpm_row
from stepfuse.integrations.diffusers.schedulers import RowScheduler
from stepfuse.integrations.diffusers.torch_step import fused_step, require_supported, warn_once


class CogVideoXDDIMScheduler(RowScheduler, diffusers.CogVideoXDDIMScheduler):
    """``diffusers.CogVideoXDDIMScheduler`` by the fused step: it neither clips nor adds noise, whatever ``eta`` is.

    Examples:
        >>> import torch
        >>> from stepfuse.integrations.diffusers import CogVideoXDDIMScheduler
        >>> scheduler = CogVideoXDDIMScheduler()  # or .from_config(pipe.scheduler.config)
        >>> scheduler.set_timesteps(4)
        >>> sample = torch.zeros(1, 4, 8, 8)
        >>> scheduler.step(sample, scheduler.timesteps[0], sample).prev_sample.shape
        torch.Size([1, 4, 8, 8])
    """

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int,
        sample: torch.Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
        generator: Generators = None,
        variance_noise: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> DDIMSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """As ``diffusers.CogVideoXDDIMScheduler.step``."""
        try:
            require_supported(sample, model_output)
            a, a_prev = self._signals(index(timestep))
            row = ddim_row(self.config.prediction_type, a, a_prev, 0.0, None, False)
        except UnsupportedStep as why:
            warn_once(type(self).__name__, str(why))
            return super().step(
                model_output, timestep, sample, eta, use_clipped_model_output, generator, variance_noise, return_dict
            )
        following, clean = fused_step(row, sample, model_output)
        return DDIMSchedulerOutput(following, clean) if return_dict else (following, clean)


class CogVideoXDPMScheduler(RowScheduler, diffusers.CogVideoXDPMScheduler):
    """``diffusers.CogVideoXDPMScheduler`` by the fused step: stochastic DPM-Solver++ 2M.

    Its caller keeps the clean sample of the step before and gives it back.

    Examples:
        >>> from stepfuse.integrations.diffusers import CogVideoXDPMScheduler
        >>> scheduler = CogVideoXDPMScheduler()  # or .from_config(pipe.scheduler.config)
        >>> scheduler.set_timesteps(4)
        >>> len(scheduler.timesteps)
        4
    """

    def step(
        self,
        model_output: torch.Tensor,
        old_pred_original_sample: torch.Tensor | None,
        timestep: int,
        timestep_back: int | None,
        sample: torch.Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
        generator: Generators = None,
        variance_noise: torch.Tensor | None = None,
        return_dict: bool = False,
    ) -> DDIMSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """As ``diffusers.CogVideoXDPMScheduler.step``."""
        # The last step is of first order, as is the first.
        is_last = index(timestep) < self.config.num_train_timesteps // self._require_steps()
        before = () if is_last or old_pred_original_sample is None else (old_pred_original_sample,)
        if before and timestep_back is None:
            raise ValueError("timestep_back must be given beside old_pred_original_sample, got None")
        try:
            require_supported(sample, model_output)
            levels: list[Any] = [
                *self._signals(index(timestep)),
                *(self._numbers("alphas_cumprod")[timestep_back] for _ in before),
            ]
            with np.errstate(divide="ignore"):
                sigma, sigma_next, *sigmas_before = (float(np.sqrt(1 / np.float64(level) - 1)) for level in levels)
            kind = self.config.prediction_type
            row = dpm_row("sde-dpmsolver++", "midpoint", kind, sigma, sigma_next, tuple(sigmas_before))
        except UnsupportedStep as why:
            warn_once(type(self).__name__, str(why))
            given = (old_pred_original_sample, timestep, timestep_back, sample, eta, use_clipped_model_output)
            return super().step(model_output, *given, generator, variance_noise, return_dict)
        z = noise_like(sample, generator)
        if before:
            z = noise_like(sample, generator)  # diffusers draws for the step of first order, too
        following, clean = fused_step(row, sample, model_output, before, z)
        as_object = return_dict and bool(before)  # as it is there
        return DDIMSchedulerOutput(following, clean) if as_object else (following, clean)
