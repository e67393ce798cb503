"""``PNDMScheduler`` and ``IPNDMScheduler``: rows are made a step at a time, from the numbers that a scheduler holds.

A step of the first follows from the timestep that it is called with; noise levels of the second are its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import diffusers
import numpy as np
import torch

from stepfuse.integrations.diffusers.scheduler_rows import ipndm_row, plms_row
from stepfuse.integrations.diffusers.scheduler_table import settings_of
from stepfuse.integrations.diffusers.table_scheduler import Run, TableScheduler, new_registers
from stepfuse.samplers.table import Float32Array


def _run_of_registers(begin: int, options: Mapping[str, Any], sample: torch.Tensor) -> Run:
    """A run without a table."""
    return Run(np.empty((0, 32), np.float32), None, options, begin, new_registers(sample, 3), begin)


class PNDMScheduler(TableScheduler, diffusers.PNDMScheduler):
    """``diffusers.PNDMScheduler`` by the fused step, without Runge-Kutta steps (``skip_prk_steps=True``).

    Examples:
        >>> import torch
        >>> from stepfuse.integrations.diffusers import PNDMScheduler
        >>> scheduler = PNDMScheduler(skip_prk_steps=True)  # or .from_config(pipe.scheduler.config)
        >>> scheduler.set_timesteps(4)
        >>> sample = torch.zeros(1, 4, 8, 8)
        >>> scheduler.step(sample, scheduler.timesteps[0], sample).prev_sample.shape
        torch.Size([1, 4, 8, 8])
    """

    def _index(self, timestep: Any) -> int:
        return int(self.counter)

    def _advance(self) -> None:
        self.counter += 1

    def _run_from(self, begin: int, options: Mapping[str, Any], sample: torch.Tensor) -> Run:
        settings_of(self)  # refuses what is not covered
        return _run_of_registers(begin, options, sample)

    def _row(self, run: Run, index: int, timestep: Any) -> Float32Array:
        stride = self.config.num_train_timesteps // self.num_inference_steps
        end = int(timestep) if index == 1 else int(timestep) - stride
        a, a_prev = (self.alphas_cumprod[t] if t >= 0 else self.final_alpha_cumprod for t in (end + stride, end))
        return plms_row(self.config.prediction_type, index, a.item(), a_prev.item())


class IPNDMScheduler(TableScheduler, diffusers.IPNDMScheduler):
    """``diffusers.IPNDMScheduler`` by the fused step, at its own noise levels.

    Examples:
        >>> import torch
        >>> from stepfuse.integrations.diffusers import IPNDMScheduler
        >>> scheduler = IPNDMScheduler()  # or .from_config(pipe.scheduler.config)
        >>> scheduler.set_timesteps(4)
        >>> sample = torch.zeros(1, 4, 8, 8)
        >>> scheduler.step(sample, scheduler.timesteps[0], sample).prev_sample.shape
        torch.Size([1, 4, 8, 8])
    """

    def _run_from(self, begin: int, options: Mapping[str, Any], sample: torch.Tensor) -> Run:
        return _run_of_registers(begin, options, sample)

    def _row(self, run: Run, index: int, timestep: Any) -> Float32Array:
        here, following = ((self.alphas[i].item(), self.betas[i].item()) for i in (index, index + 1))
        return ipndm_row(index - run.begin, here, following)
