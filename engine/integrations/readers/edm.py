"""Samplers whose networks were trained by EDM (Karras et al., 2022), and consistency models (Song et al., 2023)."""

from __future__ import annotations

import math
from typing import Any

from stepfuse.integrations.readers.entries import Entries
from stepfuse.integrations.readers.options import bounds_of
from stepfuse.samplers.schedule import NoiseSchedule

EDMS = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler", "CMStochasticIterativeScheduler")


def edm_schedule_of(config: Entries) -> NoiseSchedule:
    """The noise levels of ``EDMS``."""
    names = ("sigma_min", "sigma_max", "sigma_data")
    levels = {name: config.number(name, "above 0", lambda level: 0 < level < math.inf) for name in names}
    scale = 250.0 if config.name == "CMStochasticIterativeScheduler" else 0.25
    return NoiseSchedule.edm(**levels, timestep_scale=scale, num_train_timesteps=config["num_train_timesteps"])


def read_edm_euler(config: Entries, schedule: NoiseSchedule) -> dict[str, Any]:
    """Options of ``edm_euler``."""
    return {"sampler": "edm_euler", **_levels_of(config)}


def read_edm_dpmpp_2m(config: Entries, schedule: NoiseSchedule) -> dict[str, Any]:
    """Options of ``edm_dpmpp_2m``."""
    # The constructor takes the second for the first, but not with a final sigma of 0.
    config.require("algorithm_type", "dpmsolver++", *(("deis",) if config["final_sigmas_type"] == "sigma_min" else ()))
    # The constructor takes the last three for the first. euler_at_final changes nothing: the last step ends clean, or
    # has no length.
    solver_type = config.require("solver_type", "midpoint", "heun", "logrho", "bh1", "bh2")
    return {
        "sampler": "edm_dpmpp_2m",
        "order": config.require("solver_order", 1, 2, 3),
        "solver_type": "heun" if solver_type == "heun" else "midpoint",
        "lower_order_final": bool(config["lower_order_final"]),
        **_levels_of(config),
        **bounds_of(config),
    }


def read_cm(config: Entries, schedule: NoiseSchedule) -> dict[str, Any]:
    """Options of ``cm``."""
    s_noise = config.number("s_noise", "at least 0", lambda scale: 0 <= scale < math.inf)
    clip = {"clip": 1.0} if config["clip_denoised"] else {}
    return {"sampler": "cm", "rho": _rho_of(config), "s_noise": s_noise, **clip}


def _levels_of(config: Entries) -> dict[str, Any]:
    options: dict[str, Any] = {"levels": config.require("sigma_schedule", "karras", "exponential")}
    if options["levels"] == "karras":
        options["rho"] = _rho_of(config)
    if config.require("final_sigmas_type", "zero", "sigma_min") == "sigma_min":
        options["final_sigma"] = config.number("sigma_min")
    return options


def _rho_of(config: Entries) -> float:
    return config.number("rho", "between 0.1 and 1000", lambda rho: 0.1 <= rho <= 1000)
