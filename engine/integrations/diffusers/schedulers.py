"""diffusers' schedulers with the step replaced: timesteps, noise levels, configuration and files are theirs.

A configuration or a tensor that the fused step does not cover goes through diffusers' own ``step``, and a warning says
so once. Saved files name diffusers' classes: they load with diffusers alone, and ``from_pretrained`` of the classes
here reads any of them. A subclass that changes how diffusers steps, by ``_get_variance`` say, must change ``step``.
"""

from __future__ import annotations

from operator import index
from typing import Any, cast

import diffusers
import numpy as np
import numpy.typing as npt
import torch
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from diffusers.schedulers.scheduling_ddpm import DDPMSchedulerOutput
from diffusers.schedulers.scheduling_lcm import LCMSchedulerOutput
from diffusers.schedulers.scheduling_utils import SchedulerOutput

from stepfuse.integrations.diffusers.fused_scheduler import FusedScheduler, Generators, noise_like
from stepfuse.integrations.diffusers.scheduler_rows import (
    UnsupportedStep,
    ddim_inverse_row,
    ddim_row,
    ddpm_row,
    dpm_row,
    lcm_row,
)
from stepfuse.integrations.diffusers.torch_step import fused_step, require_supported, warn_once
from stepfuse.samplers.table import Float32Array


class RowScheduler(FusedScheduler):
    """A scheduler that makes the row of each step from the numbers that it holds at that step."""

    def _numbers(self, name: str) -> npt.NDArray[Any]:
        """A tensor attribute as an array, cached for as long as the attribute is the same tensor."""
        tensor, cache = getattr(self, name), self.__dict__.setdefault("_cached_numbers", {})
        if name not in cache or cache[name][0] is not tensor:
            wide = tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
            cache[name] = tensor, wide.cpu().numpy()
        return cast("npt.NDArray[Any]", cache[name][1])

    def _signals(self, t: int) -> tuple[np.floating[Any], float]:
        """``alphas_cumprod`` at a timestep and, as DDIM strides, at the next."""
        alphas = self._numbers("alphas_cumprod")
        before = t - self.config.num_train_timesteps // self._require_steps()  # type: ignore[attr-defined]
        final = self.final_alpha_cumprod.item()  # type: ignore[attr-defined]
        return alphas[t], alphas[before] if before >= 0 else final

    def _require(self, covered: bool, *settings: str) -> None:
        """Raises ``UnsupportedStep``, so that diffusers does the step, if these settings are not covered."""
        if not covered:
            raise UnsupportedStep(", ".join(f"{name}={self.config[name]!r}" for name in settings))  # type: ignore[attr-defined]

    def _clip(self) -> float | None:
        """The bound of the clean sample; ``UnsupportedStep`` if it is thresholded."""
        config = self.config  # type: ignore[attr-defined]
        self._require(not config.get("thresholding"), "thresholding")
        self._require(config.prediction_type in ("epsilon", "sample", "v_prediction"), "prediction_type")
        return config.clip_sample_range if config.clip_sample else None


class DDIMScheduler(RowScheduler, diffusers.DDIMScheduler):
    """``diffusers.DDIMScheduler`` by the fused step; ``thresholding`` and an ``eta`` outside 0 to 1 are left to it.

    Examples:
        >>> import torch
        >>> from stepfuse.integrations.diffusers import DDIMScheduler
        >>> scheduler = DDIMScheduler()  # or .from_config(pipe.scheduler.config)
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
        """As ``diffusers.DDIMScheduler.step``."""
        try:
            require_supported(sample, model_output)
            row = self._row(index(timestep), float(eta), bool(use_clipped_model_output))
        except UnsupportedStep as why:
            warn_once(type(self).__name__, str(why))
            return super().step(
                model_output, timestep, sample, eta, use_clipped_model_output, generator, variance_noise, return_dict
            )
        z = None
        if eta > 0:
            if variance_noise is not None and generator is not None:
                raise ValueError("pass generator or variance_noise, got both")
            z = noise_like(model_output, generator) if variance_noise is None else variance_noise.expand_as(sample)
        following, clean = fused_step(row, sample, model_output, z=z)
        return DDIMSchedulerOutput(following, clean) if return_dict else (following, clean)

    def _row(self, t: int, eta: float, clipped_eps: bool) -> Float32Array:
        if not 0 <= eta <= 1:
            raise UnsupportedStep(f"eta={eta}")
        return ddim_row(self.config.prediction_type, *self._signals(t), eta, self._clip(), clipped_eps)


class DDIMInverseScheduler(RowScheduler, diffusers.DDIMInverseScheduler):
    """``diffusers.DDIMInverseScheduler`` by the fused step: from a sample to the noise that it comes from.

    Examples:
        >>> import torch
        >>> from stepfuse.integrations.diffusers import DDIMInverseScheduler
        >>> scheduler = DDIMInverseScheduler()  # or .from_config(pipe.scheduler.config)
        >>> scheduler.set_timesteps(4)
        >>> sample = torch.zeros(1, 4, 8, 8)
        >>> scheduler.step(sample, scheduler.timesteps[0], sample).prev_sample.shape
        torch.Size([1, 4, 8, 8])
    """

    def step(
        self, model_output: torch.Tensor, timestep: int, sample: torch.Tensor, return_dict: bool = True
    ) -> DDIMSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """As ``diffusers.DDIMInverseScheduler.step``."""
        try:
            require_supported(sample, model_output)
            to = index(timestep)
            alphas, here = (
                self._numbers("alphas_cumprod"),
                to - self.config.num_train_timesteps // self._require_steps(),
            )
            a = alphas[min(here, len(alphas) - 1)] if here >= 0 else self.initial_alpha_cumprod.item()
            row = ddim_inverse_row(self.config.prediction_type, a, alphas[to], self._clip())
        except UnsupportedStep as why:
            warn_once(type(self).__name__, str(why))
            return super().step(model_output, timestep, sample, return_dict)
        following, clean = fused_step(row, sample, model_output)
        return DDIMSchedulerOutput(following, clean) if return_dict else (following, clean)


class DDPMScheduler(RowScheduler, diffusers.DDPMScheduler):
    """``diffusers.DDPMScheduler`` by the fused step; ``thresholding`` and a learned variance are left to it.

    Examples:
        >>> import torch
        >>> from stepfuse.integrations.diffusers import DDPMScheduler
        >>> scheduler = DDPMScheduler()  # or .from_config(pipe.scheduler.config)
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
        generator: Generators = None,
        return_dict: bool = True,
    ) -> DDPMSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """As ``diffusers.DDPMScheduler.step``."""
        try:
            kind = self.config.variance_type
            self._require(kind not in ("learned", "learned_range", "fixed_large_log"), "variance_type")
            require_supported(sample, model_output)
            t, alphas = index(timestep), self._numbers("alphas_cumprod")
            before = self._before(t)
            a_prev = alphas[before] if before >= 0 else 1.0
            variance = "beta" if kind == "fixed_large" else "posterior"
            row = ddpm_row(self.config.prediction_type, t, alphas[t], a_prev, variance, self._clip())
        except UnsupportedStep as why:
            warn_once(type(self).__name__, str(why))
            return super().step(model_output, timestep, sample, generator, return_dict)
        z = noise_like(model_output, generator) if t > 0 else None
        following, clean = fused_step(row, sample, model_output, z=z)
        return DDPMSchedulerOutput(following, clean) if return_dict else (following, clean)

    def _before(self, t: int) -> int:
        """The timestep that a step from ``t`` leads to; below 0: the clean sample."""
        if not (self.custom_timesteps or self.num_inference_steps):
            return t - 1
        timesteps = self._numbers("timesteps")
        (found,) = np.nonzero(timesteps == t)
        if not len(found):
            raise ValueError(f"timestep must be one of the scheduler's timesteps, got {t}")
        return int(timesteps[found[0] + 1]) if found[0] + 1 < len(timesteps) else -1


class LCMScheduler(RowScheduler, diffusers.LCMScheduler):
    """``diffusers.LCMScheduler`` by the fused step; ``thresholding`` is left to it.

    Examples:
        >>> import torch
        >>> from stepfuse.integrations.diffusers import LCMScheduler
        >>> scheduler = LCMScheduler()  # or .from_config(pipe.scheduler.config)
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
        generator: Generators = None,
        return_dict: bool = True,
    ) -> LCMSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """As ``diffusers.LCMScheduler.step``."""
        try:
            require_supported(sample, model_output)
            clip, steps = self._clip(), self._require_steps()
            if self.step_index is None:
                self._init_step_index(timestep)
            at, t, timesteps = self.step_index, index(timestep), self._numbers("timesteps")
            alphas, last = self._numbers("alphas_cumprod"), at == steps - 1
            before = timesteps[at + 1] if at + 1 < len(timesteps) else t
            a_prev = alphas[before] if before >= 0 else self.final_alpha_cumprod.item()
            scaling = self.config.timestep_scaling
            row = lcm_row(self.config.prediction_type, t, alphas[t], None if last else a_prev, scaling, clip)
        except UnsupportedStep as why:
            warn_once(type(self).__name__, str(why))
            return super().step(model_output, timestep, sample, generator, return_dict)
        z = None if last else noise_like(model_output, generator)
        following, denoised = fused_step(row, sample, model_output, z=z)
        self._step_index += 1
        return LCMSchedulerOutput(following, denoised) if return_dict else (following, denoised)


class DPMSolverMultistepScheduler(RowScheduler, diffusers.DPMSolverMultistepScheduler):
    """``diffusers.DPMSolverMultistepScheduler`` by the fused step; ``thresholding`` is left to it.

    Every ``algorithm_type``, ``solver_type``, ``solver_order`` and way to choose noise levels is covered.

    Examples:
        >>> import torch
        >>> from stepfuse.integrations.diffusers import DPMSolverMultistepScheduler
        >>> scheduler = DPMSolverMultistepScheduler()  # or .from_config(pipe.scheduler.config)
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
        generator: Generators = None,
        variance_noise: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[torch.Tensor]:
        """As ``diffusers.DPMSolverMultistepScheduler.step``."""
        config, prediction = self.config, model_output
        if config.prediction_type == "epsilon" and config.variance_type in ("learned", "learned_range"):
            prediction = model_output[:, :3]  # the variance is not used
        try:
            self._require(not config.thresholding, "thresholding")
            self._require(config.solver_order < 3 or config.algorithm_type != "sde-dpmsolver", "algorithm_type")
            require_supported(sample, prediction)
            self._require_steps()
            if self.step_index is None:
                self._init_step_index(timestep)
            order = self._order(self.step_index)
            row = self._row(self.step_index, order)
        except UnsupportedStep as why:
            warn_once(type(self).__name__, str(why))
            return super().step(model_output, timestep, sample, generator, variance_noise, return_dict)
        z = None
        if config.algorithm_type.startswith("sde-"):
            if variance_noise is None:
                z = noise_like(prediction, generator, torch.float32)
            else:
                z = variance_noise.to(sample.device, torch.float32).expand_as(sample)
        before = self.model_outputs[:-order:-1]
        following, estimate = fused_step(row, sample, prediction, before, z)
        self.model_outputs[:-1] = self.model_outputs[1:]
        self.model_outputs[-1] = estimate
        self.lower_order_nums += self.lower_order_nums < config.solver_order
        self._step_index += 1
        return SchedulerOutput(following) if return_dict else (following,)

    def _order(self, at: int) -> int:
        config, left, few = self.config, len(self.timesteps) - at, len(self.timesteps) < 15
        ends_low = config.lower_order_final and few
        order = int(min(config.solver_order, self.lower_order_nums + 1))
        if left == 1 and (config.euler_at_final or config.final_sigmas_type == "zero" or ends_low):
            return 1
        return min(order, 2) if left == 2 and ends_low else order

    def _row(self, at: int, order: int) -> Float32Array:
        config, sigmas = self.config, self._numbers("sigmas")
        kinds = ("flow_prediction",) if config.use_flow_sigmas else ("epsilon", "sample", "v_prediction")
        self._require(config.prediction_type in kinds, "prediction_type", "use_flow_sigmas")
        self._require(config.algorithm_type.endswith("++") or not config.use_flow_sigmas, "algorithm_type")
        before = tuple(float(sigmas[at - back]) for back in range(1, order))
        solver = config.algorithm_type, config.solver_type, config.prediction_type
        return dpm_row(*solver, float(sigmas[at]), float(sigmas[at + 1]), before)
