"""``PNDMScheduler``, whose steps follow from the timestep that each is called with, whatever came before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import diffusers
import numpy as np
import torch

from stepfuse.integrations.diffusers.scheduler_rows import plms_row
from stepfuse.integrations.diffusers.scheduler_table import settings_of
from stepfuse.integrations.diffusers.table_scheduler import Run, TableScheduler, new_registers
from stepfuse.samplers.table import Float32Array


class PNDMScheduler(TableScheduler, diffusers.PNDMScheduler):
    """``diffusers.PNDMScheduler`` by the fused step, without Runge-Kutta steps (``skip_prk_steps=True``)."""

    def _index(self, timestep: Any) -> int:
        return int(self.counter)

    def _advance(self) -> None:
        self.counter += 1

    def _run_from(self, begin: int, options: Mapping[str, Any], sample: torch.Tensor) -> Run:
        settings_of(self)  # refuses what is not covered
        return Run(np.empty((0, 32), np.float32), None, options, begin, new_registers(sample, 3), begin)

    def _row(self, run: Run, index: int, timestep: Any) -> Float32Array:
        stride = self.config.num_train_timesteps // self.num_inference_steps
        end = int(timestep) if index == 1 else int(timestep) - stride
        a, a_prev = (self.alphas_cumprod[t] if t >= 0 else self.final_alpha_cumprod for t in (end + stride, end))
        return plms_row(self.config.prediction_type, index, a.item(), a_prev.item())
