"""diffusers' schedulers with the step replaced by rows of the engine's samplers.

Constructor, files, timesteps, noise levels, ``add_noise`` and results are diffusers'. What the rows cannot do, as a
configuration that ``compile`` refuses, thresholding or gradients, is refused with the class that can.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import diffusers
import numpy as np
import torch

from stepfuse.integrations.diffusers.table_scheduler import TableScheduler
from stepfuse.samplers.table import Float32Array, StepTable


class EulerDiscreteScheduler(TableScheduler, diffusers.EulerDiscreteScheduler):
    """``diffusers.EulerDiscreteScheduler`` by the fused step, without churn.

    Examples:
        >>> import torch
        >>> from stepfuse.integrations.diffusers import EulerDiscreteScheduler
        >>> scheduler = EulerDiscreteScheduler()  # or .from_config(pipe.scheduler.config)
        >>> scheduler.set_timesteps(4)
        >>> sample = torch.zeros(1, 4, 8, 8)
        >>> scheduler.step(sample, scheduler.timesteps[0], sample).prev_sample.shape
        torch.Size([1, 4, 8, 8])
    """

    takes_indices = False
    keeps_dtype = False


class EulerAncestralDiscreteScheduler(TableScheduler, diffusers.EulerAncestralDiscreteScheduler):
    """``diffusers.EulerAncestralDiscreteScheduler`` by the fused step.

    Examples:
        >>> import torch
        >>> from stepfuse.integrations.diffusers import EulerAncestralDiscreteScheduler
        >>> scheduler = EulerAncestralDiscreteScheduler()  # or .from_config(pipe.scheduler.config)
        >>> scheduler.set_timesteps(4)
        >>> sample = torch.zeros(1, 4, 8, 8)
        >>> scheduler.step(sample, scheduler.timesteps[0], sample).prev_sample.shape
        torch.Size([1, 4, 8, 8])
    """

    takes_indices = False
    keeps_dtype = False

    def _noise_dtype(self, index: int, state: torch.dtype, output: torch.dtype) -> torch.dtype:
        return output


class HeunDiscreteScheduler(TableScheduler, diffusers.HeunDiscreteScheduler):
    """``diffusers.HeunDiscreteScheduler`` by the fused step.

    Examples:
        >>> import torch
        >>> from stepfuse.integrations.diffusers import HeunDiscreteScheduler
        >>> scheduler = HeunDiscreteScheduler()  # or .from_config(pipe.scheduler.config)
        >>> scheduler.set_timesteps(4)
        >>> sample = torch.zeros(1, 4, 8, 8)
        >>> scheduler.step(sample, scheduler.timesteps[0], sample).prev_sample.shape
        torch.Size([1, 4, 8, 8])
    """


class UniPCMultistepScheduler(TableScheduler, diffusers.UniPCMultistepScheduler):
    """``diffusers.UniPCMultistepScheduler`` by the fused step.

    Examples:
        >>> import torch
        >>> from stepfuse.integrations.diffusers import UniPCMultistepScheduler
        >>> scheduler = UniPCMultistepScheduler()  # or .from_config(pipe.scheduler.config)
        >>> scheduler.set_timesteps(4)
        >>> sample = torch.zeros(1, 4, 8, 8)
        >>> scheduler.step(sample, scheduler.timesteps[0], sample).prev_sample.shape
        torch.Size([1, 4, 8, 8])
    """


class DEISMultistepScheduler(TableScheduler, diffusers.DEISMultistepScheduler):
    """``diffusers.DEISMultistepScheduler`` by the fused step.

    Examples:
        >>> import torch
        >>> from stepfuse.integrations.diffusers import DEISMultistepScheduler
        >>> scheduler = DEISMultistepScheduler()  # or .from_config(pipe.scheduler.config)
        >>> scheduler.set_timesteps(4)
        >>> sample = torch.zeros(1, 4, 8, 8)
        >>> scheduler.step(sample, scheduler.timesteps[0], sample).prev_sample.shape
        torch.Size([1, 4, 8, 8])
    """


class LMSDiscreteScheduler(TableScheduler, diffusers.LMSDiscreteScheduler):
    """``diffusers.LMSDiscreteScheduler`` by the fused step, up to order 4.

    Examples:
        >>> import torch
        >>> from stepfuse.integrations.diffusers import LMSDiscreteScheduler
        >>> scheduler = LMSDiscreteScheduler()  # or .from_config(pipe.scheduler.config)
        >>> scheduler.set_timesteps(4)
        >>> sample = torch.zeros(1, 4, 8, 8)
        >>> scheduler.step(sample, scheduler.timesteps[0], sample).prev_sample.shape
        torch.Size([1, 4, 8, 8])
    """

    chosen_in_step = ("order",)

    def _rest(self, table: StepTable, begin: int) -> StepTable:
        """In diffusers a run that begins in the middle weighs slopes that it does not have: zeros, as registers are."""
        return table[begin:]


class KDPM2DiscreteScheduler(TableScheduler, diffusers.KDPM2DiscreteScheduler):
    """``diffusers.KDPM2DiscreteScheduler`` by the fused step.

    Examples:
        >>> import torch
        >>> from stepfuse.integrations.diffusers import KDPM2DiscreteScheduler
        >>> scheduler = KDPM2DiscreteScheduler()  # or .from_config(pipe.scheduler.config)
        >>> scheduler.set_timesteps(4)
        >>> sample = torch.zeros(1, 4, 8, 8)
        >>> scheduler.step(sample, scheduler.timesteps[0], sample).prev_sample.shape
        torch.Size([1, 4, 8, 8])
    """


class KDPM2AncestralDiscreteScheduler(TableScheduler, diffusers.KDPM2AncestralDiscreteScheduler):
    """``diffusers.KDPM2AncestralDiscreteScheduler`` by the fused step.

    Examples:
        >>> import torch
        >>> from stepfuse.integrations.diffusers import KDPM2AncestralDiscreteScheduler
        >>> scheduler = KDPM2AncestralDiscreteScheduler()  # or .from_config(pipe.scheduler.config)
        >>> scheduler.set_timesteps(4)
        >>> sample = torch.zeros(1, 4, 8, 8)
        >>> scheduler.step(sample, scheduler.timesteps[0], sample).prev_sample.shape
        torch.Size([1, 4, 8, 8])
    """

    def _noise_dtype(self, index: int, state: torch.dtype, output: torch.dtype) -> torch.dtype | None:
        return output if index % 2 else None


class DPMSolverSinglestepScheduler(TableScheduler, diffusers.DPMSolverSinglestepScheduler):
    """``diffusers.DPMSolverSinglestepScheduler`` by the fused step.

    Examples:
        >>> import torch
        >>> from stepfuse.integrations.diffusers import DPMSolverSinglestepScheduler
        >>> scheduler = DPMSolverSinglestepScheduler()  # or .from_config(pipe.scheduler.config)
        >>> scheduler.set_timesteps(4)
        >>> sample = torch.zeros(1, 4, 8, 8)
        >>> scheduler.step(sample, scheduler.timesteps[0], sample).prev_sample.shape
        torch.Size([1, 4, 8, 8])
    """


class SASolverScheduler(TableScheduler, diffusers.SASolverScheduler):
    """``diffusers.SASolverScheduler`` by the fused step, with its own tau.

    Examples:
        >>> import torch
        >>> from stepfuse.integrations.diffusers import SASolverScheduler
        >>> scheduler = SASolverScheduler()  # or .from_config(pipe.scheduler.config)
        >>> scheduler.set_timesteps(4)
        >>> sample = torch.zeros(1, 4, 8, 8)
        >>> scheduler.step(sample, scheduler.timesteps[0], sample).prev_sample.shape
        torch.Size([1, 4, 8, 8])
    """

    def _noise_dtype(self, index: int, state: torch.dtype, output: torch.dtype) -> torch.dtype:
        return output


class TCDScheduler(TableScheduler, diffusers.TCDScheduler):
    """``diffusers.TCDScheduler`` by the fused step.

    Examples:
        >>> import torch
        >>> from stepfuse.integrations.diffusers import TCDScheduler
        >>> scheduler = TCDScheduler()  # or .from_config(pipe.scheduler.config)
        >>> scheduler.set_timesteps(4)
        >>> sample = torch.zeros(1, 4, 8, 8)
        >>> scheduler.step(sample, scheduler.timesteps[0], sample).prev_sample.shape
        torch.Size([1, 4, 8, 8])
    """

    chosen_in_step = ("eta",)

    def _second_rows(self, table: StepTable, options: Mapping[str, Any]) -> Float32Array:
        """The next state before noise brings it back up."""
        before = self.timesteps[1:].cpu()
        lowest = torch.floor((1 - options["eta"]) * before).long()
        alphas = self.alphas_cumprod.double()
        scale = np.append(torch.sqrt(alphas[before] / alphas[lowest]).numpy(), 1.0)
        columns = {name: table[name] / scale for name in ("q_x", "q_d", "q_e")}
        return StepTable.from_columns({**columns, **{name: table[name] for name in ("p_x", "p_e")}}).rows

    def _noise_dtype(self, index: int, state: torch.dtype, output: torch.dtype) -> torch.dtype | None:
        assert self._run is not None
        is_drawn = self._run.options["eta"] > 0 and index < self.num_inference_steps - 1
        return torch.promote_types(state, output) if is_drawn else None


class FlowMatchEulerDiscreteScheduler(TableScheduler, diffusers.FlowMatchEulerDiscreteScheduler):
    """``diffusers.FlowMatchEulerDiscreteScheduler`` by the fused step, with one timestep for all of a sample.

    Examples:
        >>> import torch
        >>> from stepfuse.integrations.diffusers import FlowMatchEulerDiscreteScheduler
        >>> scheduler = FlowMatchEulerDiscreteScheduler()  # or .from_config(pipe.scheduler.config)
        >>> scheduler.set_timesteps(4)
        >>> sample = torch.zeros(1, 4, 8, 8)
        >>> scheduler.step(sample, scheduler.timesteps[0], sample).prev_sample.shape
        torch.Size([1, 4, 8, 8])
    """

    takes_indices = False
    keeps_dtype = False

    def _noise_dtype(self, index: int, state: torch.dtype, output: torch.dtype) -> torch.dtype | None:
        return torch.float32 if self.config.stochastic_sampling else None


class FlowMatchHeunDiscreteScheduler(TableScheduler, diffusers.FlowMatchHeunDiscreteScheduler):
    """``diffusers.FlowMatchHeunDiscreteScheduler`` by the fused step, without churn.

    Examples:
        >>> import torch
        >>> from stepfuse.integrations.diffusers import FlowMatchHeunDiscreteScheduler
        >>> scheduler = FlowMatchHeunDiscreteScheduler()  # or .from_config(pipe.scheduler.config)
        >>> scheduler.set_timesteps(4)
        >>> sample = torch.zeros(1, 4, 8, 8)
        >>> scheduler.step(sample, scheduler.timesteps[0], sample).prev_sample.shape
        torch.Size([1, 4, 8, 8])
    """

    takes_indices = False
    keeps_dtype = False


class FlowMatchLCMScheduler(TableScheduler, diffusers.FlowMatchLCMScheduler):
    """``diffusers.FlowMatchLCMScheduler`` by the fused step, which keeps the sample's size.

    Examples:
        >>> import torch
        >>> from stepfuse.integrations.diffusers import FlowMatchLCMScheduler
        >>> scheduler = FlowMatchLCMScheduler()  # or .from_config(pipe.scheduler.config)
        >>> scheduler.set_timesteps(4)
        >>> sample = torch.zeros(1, 4, 8, 8)
        >>> scheduler.step(sample, scheduler.timesteps[0], sample).prev_sample.shape
        torch.Size([1, 4, 8, 8])
    """

    takes_indices = False
    keeps_dtype = False

    def _noise_dtype(self, index: int, state: torch.dtype, output: torch.dtype) -> torch.dtype:
        return torch.float32


class EDMEulerScheduler(TableScheduler, diffusers.EDMEulerScheduler):
    """``diffusers.EDMEulerScheduler`` by the fused step, without churn.

    Examples:
        >>> import torch
        >>> from stepfuse.integrations.diffusers import EDMEulerScheduler
        >>> scheduler = EDMEulerScheduler()  # or .from_config(pipe.scheduler.config)
        >>> scheduler.set_timesteps(4)
        >>> sample = torch.zeros(1, 4, 8, 8)
        >>> scheduler.step(sample, scheduler.timesteps[0], sample).prev_sample.shape
        torch.Size([1, 4, 8, 8])
    """

    takes_indices = False
    keeps_dtype = False


class EDMDPMSolverMultistepScheduler(TableScheduler, diffusers.EDMDPMSolverMultistepScheduler):
    """``diffusers.EDMDPMSolverMultistepScheduler`` by the fused step, without noise.

    Examples:
        >>> import torch
        >>> from stepfuse.integrations.diffusers import EDMDPMSolverMultistepScheduler
        >>> scheduler = EDMDPMSolverMultistepScheduler()  # or .from_config(pipe.scheduler.config)
        >>> scheduler.set_timesteps(4)
        >>> sample = torch.zeros(1, 4, 8, 8)
        >>> scheduler.step(sample, scheduler.timesteps[0], sample).prev_sample.shape
        torch.Size([1, 4, 8, 8])
    """


class CMStochasticIterativeScheduler(TableScheduler, diffusers.CMStochasticIterativeScheduler):
    """``diffusers.CMStochasticIterativeScheduler`` by the fused step.

    Examples:
        >>> import torch
        >>> from stepfuse.integrations.diffusers import CMStochasticIterativeScheduler
        >>> scheduler = CMStochasticIterativeScheduler()  # or .from_config(pipe.scheduler.config)
        >>> scheduler.set_timesteps(4)
        >>> sample = torch.zeros(1, 4, 8, 8)
        >>> scheduler.step(sample, scheduler.timesteps[0], sample).prev_sample.shape
        torch.Size([1, 4, 8, 8])
    """

    takes_indices = False

    def _noise_dtype(self, index: int, state: torch.dtype, output: torch.dtype) -> torch.dtype | None:
        return output if len(self.timesteps) > 1 else None
