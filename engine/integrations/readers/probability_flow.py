"""Classes whose states are the clean sample with noise added: Euler, Heun, LMS, KDPM2, the DPM++ SDE."""

from __future__ import annotations

from typing import Any

from stepfuse.integrations.readers.entries import Entries
from stepfuse.integrations.readers.levels import levels_of, require_signal
from stepfuse.integrations.readers.options import bounds_of, spacing_of
from stepfuse.samplers.schedule import NoiseSchedule


def read_euler(config: Entries, schedule: NoiseSchedule) -> dict[str, Any]:
    """``EulerDiscreteScheduler``."""
    require_signal(config)
    levels = levels_of(config, schedule)
    config.require("interpolation_type", "linear")
    config.require("final_sigmas_type", "zero")
    if config["prediction_type"] == "v_prediction":
        config.require("timestep_type", "discrete", why=" with prediction_type 'v_prediction'")
    return {"sampler": "euler", **levels, **spacing_of(config)}


def read_euler_ancestral(config: Entries, schedule: NoiseSchedule) -> dict[str, Any]:
    """``EulerAncestralDiscreteScheduler``."""
    require_signal(config)
    config.require("prediction_type", "epsilon", "v_prediction")
    return {"sampler": "euler_ancestral", **spacing_of(config)}


def read_heun(config: Entries, schedule: NoiseSchedule) -> dict[str, Any]:
    """``HeunDiscreteScheduler``."""
    return {"sampler": "heun", **levels_of(config, schedule), **spacing_of(config), **bounds_of(config)}


def read_lms(config: Entries, schedule: NoiseSchedule) -> dict[str, Any]:
    """``LMSDiscreteScheduler``, whose order is no entry of it."""
    return {"sampler": "lms", **levels_of(config, schedule), **spacing_of(config)}


def read_kdpm2(config: Entries, schedule: NoiseSchedule) -> dict[str, Any]:
    """``KDPM2DiscreteScheduler`` and ``KDPM2AncestralDiscreteScheduler``."""
    config.require("prediction_type", "epsilon", "v_prediction")
    sampler = "kdpm2_ancestral" if config.name == "KDPM2AncestralDiscreteScheduler" else "kdpm2"
    return {"sampler": sampler, **levels_of(config, schedule), **spacing_of(config)}


def read_dpmpp_sde(config: Entries, schedule: NoiseSchedule) -> dict[str, Any]:
    """``DPMSolverSDEScheduler``."""
    config.require("prediction_type", "epsilon", "v_prediction")
    config.require("noise_sampler_seed", None, why=", since noise comes from the seed of each request")
    return {"sampler": "dpmpp_sde", **levels_of(config, schedule), **spacing_of(config)}
