"""Classes whose steps remember nothing, on the timesteps of training: DDIM, DDPM, consistency models."""

from __future__ import annotations

from typing import Any

from stepfuse.integrations.readers.entries import Entries
from stepfuse.integrations.readers.levels import require_signal
from stepfuse.integrations.readers.options import bounds_of, spacing_of
from stepfuse.samplers.schedule import NoiseSchedule


def read_ddim(config: Entries, schedule: NoiseSchedule) -> dict[str, Any]:
    """``DDIMScheduler``, whose steps have one length."""
    options = {"sampler": "ddim", "fixed_stride": True, **spacing_of(config), **bounds_of(config)}
    if not config["set_alpha_to_one"]:
        options["final_alpha_cumprod"] = float(schedule.alphas_cumprod[0])
    return options


def read_ddpm(config: Entries, schedule: NoiseSchedule) -> dict[str, Any]:
    """``DDPMScheduler`` with a fixed variance."""
    # None, which solvers' files have, is the first.
    kind = config.require("variance_type", "fixed_small", "fixed_small_log", "fixed_large", None)
    variance = "beta" if kind == "fixed_large" else "posterior"
    return {"sampler": "ddpm", "variance": variance, **spacing_of(config), **bounds_of(config)}


def read_lcm(config: Entries, schedule: NoiseSchedule) -> dict[str, Any]:
    """``LCMScheduler``, but for flows."""
    require_signal(config)
    config.require("timestep_scaling", 10.0)
    return {"sampler": "lcm", "original_steps": _original_steps(config), **bounds_of(config)}


def read_tcd(config: Entries, schedule: NoiseSchedule) -> dict[str, Any]:
    """Its step reads neither clipping nor thresholding, and always ends at the schedule's least noise."""
    require_signal(config)
    final = float(schedule.alphas_cumprod[0])
    return {"sampler": "tcd", "original_steps": _original_steps(config), "final_alpha_cumprod": final}


def _original_steps(config: Entries) -> int:
    """Steps of the solver that a consistency model was distilled with."""
    total = config["num_train_timesteps"]
    rule = f"a whole number from 1 to num_train_timesteps, {total}"
    return int(config.number("original_inference_steps", rule, lambda steps: steps in range(1, total + 1)))
