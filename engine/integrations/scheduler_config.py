"""A diffusers scheduler's configuration, read as a noise schedule and the options of one of our samplers.

It needs ``scheduler_config.json`` alone, not diffusers. Missing entries take the defaults of diffusers 0.42; entries
that a class does not have are ignored, as diffusers ignores them in a file that another scheduler wrote.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from stepfuse.samplers.schedule import NoiseSchedule


@dataclass(frozen=True)
class SchedulerSettings:
    """A scheduler's configuration in this package's terms.

    Attributes:
        schedule: Noise levels.
        prediction_type: ``epsilon``, ``v_prediction``, ``sample`` or ``flow``.
        defaults: ``sampler`` and its options, for ``ModelInfo.defaults`` or ``Engine.sample``.
        sampler_options: Options of each other sampler whose class, made ``from_config`` of this configuration, is
            covered; for ``ModelInfo.sampler_options``.
    """

    schedule: NoiseSchedule
    prediction_type: str
    defaults: dict[str, Any]
    sampler_options: dict[str, dict[str, Any]]


class _Config(Mapping[str, Any]):
    """A configuration with its class's defaults filled in."""

    def __init__(self, name: str, values: Mapping[str, Any]) -> None:
        self.name = name
        self._values = {key: values.get(key, default) for key, default in DEFAULTS[name].items()}

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __iter__(self) -> Any:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def require(self, key: str, *allowed: Any, why: str = "") -> Any:
        """The value of an entry that must be one of ``allowed``."""
        value = self._values[key]
        if value not in allowed:
            choice = " or ".join(repr(one) for one in allowed)
            raise ValueError(
                f"{self.name}: {key} must be {choice}{why}, got {value!r}: change the scheduler's configuration, or"
                f" take another of {', '.join(COVERED)}"
            )
        return value


def read_scheduler(config: Mapping[str, Any]) -> SchedulerSettings:
    """Reads the entries of a ``scheduler_config.json``, ``_class_name`` among them.

    Args:
        config: Entries by name; a missing one takes the class's default.

    Raises:
        ValueError: If the class is not covered, or an entry changes its numbers in a way that no sampler here does; the
            message names class, entry and value.
        TypeError: If an entry that must be a number is something else.
    """
    name = config.get("_class_name")
    if not isinstance(name, str) or name not in _READERS:
        raise ValueError(f"scheduler must be one of {', '.join(COVERED)}, got {name}")
    unknown = [
        key
        for key, value in config.items()
        if not key.startswith("_") and key not in _KNOWN and value is not None and value is not False
    ]
    if unknown:
        raise ValueError(f"{name}: entries must be known, got {unknown[0]} = {config[unknown[0]]!r}")
    filled = _Config(name, config)
    if name == "FlowMatchEulerDiscreteScheduler":
        return SchedulerSettings(_flow_schedule(filled), "flow", {"sampler": "euler"}, {})
    prediction = filled.require("prediction_type", "epsilon", "v_prediction", "sample")
    schedule = _schedule(filled)
    return SchedulerSettings(schedule, prediction, _READERS[name](filled, schedule), _others(name, config))


def _others(name: str, config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Options of the other classes' samplers, as diffusers' ``from_config`` makes these of one's configuration."""
    found = {}
    for other, read in _READERS.items():
        if other in (name, "FlowMatchEulerDiscreteScheduler"):
            continue
        filled = _Config(other, config)
        try:
            filled.require("prediction_type", "epsilon", "v_prediction", "sample")
            options = read(filled, _schedule(filled))
        except (ValueError, TypeError):
            continue
        found[options.pop("sampler")] = options
    return found


def _schedule(config: _Config) -> NoiseSchedule:
    """The noise levels of ``betas``."""
    total, trained = config["num_train_timesteps"], config["trained_betas"]
    if trained is not None:
        if len(trained) != total:
            raise ValueError(f"{config.name}: trained_betas must be num_train_timesteps = {total}, got {len(trained)}")
        schedule = NoiseSchedule.from_betas(trained)
    else:
        kind = config.require("beta_schedule", "linear", "scaled_linear", "squaredcos_cap_v2")
        if kind == "squaredcos_cap_v2":
            schedule = NoiseSchedule.squaredcos(total)
        else:
            make = NoiseSchedule.linear if kind == "linear" else NoiseSchedule.scaled_linear
            schedule = make(float(config["beta_start"]), float(config["beta_end"]), total)
    return schedule.rescale_zero_terminal_snr() if config.get("rescale_betas_zero_snr") else schedule


def _flow_schedule(config: _Config) -> NoiseSchedule:
    for key in ("use_dynamic_shifting", "invert_sigmas", "stochastic_sampling", *_OTHER_SIGMAS, "use_karras_sigmas"):
        config.require(key, False, None)
    config.require("shift_terminal", None)
    return NoiseSchedule.flow(float(config["shift"]), config["num_train_timesteps"])


def _ddim(config: _Config, schedule: NoiseSchedule) -> dict[str, Any]:
    options = {"sampler": "ddim", "fixed_stride": True, **_spacing(config), **_bounds(config)}
    if not config["set_alpha_to_one"]:
        options["final_alpha_cumprod"] = float(schedule.alphas_cumprod[0])
    return options


def _ddpm(config: _Config, schedule: NoiseSchedule) -> dict[str, Any]:
    kind = config.require("variance_type", "fixed_small", "fixed_small_log", "fixed_large")
    variance = "beta" if kind == "fixed_large" else "posterior"
    return {"sampler": "ddpm", "variance": variance, **_spacing(config), **_bounds(config)}


def _dpmpp_2m(config: _Config, schedule: NoiseSchedule) -> dict[str, Any]:
    config.require("algorithm_type", "dpmsolver++")
    config.require("solver_order", 2)
    config.require("solver_type", "midpoint")
    config.require("variance_type", None)
    for key in ("use_lu_lambdas", "use_flow_sigmas", "use_dynamic_shifting", *_OTHER_SIGMAS):
        config.require(key, False, None)
    karras = bool(config["use_karras_sigmas"])
    if karras and config["trained_betas"] is None:  # diffusers truncates these timesteps where it rounds all others
        config.require("beta_schedule", "linear", "scaled_linear", why=" with use_karras_sigmas")
    with np.errstate(divide="ignore"):
        log_snr = np.log(schedule.alphas_cumprod / (1 - schedule.alphas_cumprod)) / 2
    if config["lambda_min_clipped"] > np.where(np.isfinite(log_snr), log_snr, math.log(2.0**-12)).min():
        config.require("lambda_min_clipped", -math.inf)
    options = {
        "sampler": "dpmpp_2m",
        "karras": karras,
        "lower_order_final": bool(config["lower_order_final"]),
        **_spacing(config),
        **_bounds(config),
    }
    if config.require("final_sigmas_type", "zero", "sigma_min") == "sigma_min":
        config.require("euler_at_final", False, why=" with final_sigmas_type 'sigma_min'")
        options["final_alpha_cumprod"] = float(schedule.alphas_cumprod[0])
    return options


def _heun(config: _Config, schedule: NoiseSchedule) -> dict[str, Any]:
    for key in _OTHER_SIGMAS:
        config.require(key, False, None)
    return {"sampler": "heun", "karras": bool(config["use_karras_sigmas"]), **_spacing(config), **_bounds(config)}


def _lcm(config: _Config, schedule: NoiseSchedule) -> dict[str, Any]:
    config.require("timestep_scaling", 10.0)
    return {"sampler": "lcm", "original_steps": config["original_inference_steps"], **_bounds(config)}


def _euler(config: _Config, schedule: NoiseSchedule) -> dict[str, Any]:
    for key in _OTHER_SIGMAS:
        config.require(key, False, None)
    config.require("interpolation_type", "linear")
    config.require("final_sigmas_type", "zero")
    if config["prediction_type"] == "v_prediction":
        config.require("timestep_type", "discrete", why=" with prediction_type 'v_prediction'")
    karras = bool(config["use_karras_sigmas"])
    for key in ("sigma_min", "sigma_max") if karras else ():
        config.require(key, None, why=" with use_karras_sigmas")
    return {"sampler": "euler", "karras": karras, **_spacing(config)}


def _euler_ancestral(config: _Config, schedule: NoiseSchedule) -> dict[str, Any]:
    config.require("prediction_type", "epsilon", "v_prediction")
    return {"sampler": "euler_ancestral", **_spacing(config)}


def _spacing(config: _Config) -> dict[str, Any]:
    spacing = config.require("timestep_spacing", "leading", "trailing", "linspace")
    offset = {"steps_offset": config["steps_offset"]} if spacing == "leading" and config["steps_offset"] else {}
    return {"spacing": spacing, **offset}


def _bounds(config: _Config) -> dict[str, Any]:
    """How the clean estimate is bounded: by thresholding if that is set, else by clipping."""
    if config.get("thresholding"):
        largest = float(config["sample_max_value"])
        if largest < 1:
            raise ValueError(f"{config.name}: sample_max_value must be at least 1 with thresholding, got {largest}")
        return {"dynamic_threshold": (float(config["dynamic_thresholding_ratio"]), largest)}
    return {"clip": float(config["clip_sample_range"])} if config.get("clip_sample") else {}


_READERS: dict[str, Callable[[_Config, NoiseSchedule], dict[str, Any]]] = {
    "DDIMScheduler": _ddim,
    "DDPMScheduler": _ddpm,
    "DPMSolverMultistepScheduler": _dpmpp_2m,
    "LCMScheduler": _lcm,
    "HeunDiscreteScheduler": _heun,
    "EulerDiscreteScheduler": _euler,
    "EulerAncestralDiscreteScheduler": _euler_ancestral,
    "FlowMatchEulerDiscreteScheduler": lambda config, schedule: {},
}

#: The classes of diffusers that ``read_scheduler`` reads.
COVERED = tuple(_READERS)

_OTHER_SIGMAS = ("use_exponential_sigmas", "use_beta_sigmas")
_BETAS: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
}
_THRESHOLD = {"thresholding": False, "dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0}
_CLIP = {"clip_sample": True, "clip_sample_range": 1.0}
_LEADING = {"timestep_spacing": "leading", "steps_offset": 0}
_LINSPACE = {"timestep_spacing": "linspace", "steps_offset": 0}
_SIGMAS = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}
_ZERO_SNR = {"rescale_betas_zero_snr": False}
_LATENT = {"beta_start": 0.00085, "beta_end": 0.012}

#: The arguments of each class's constructor with what they are by default.
DEFAULTS: dict[str, dict[str, Any]] = {
    "DDIMScheduler": {**_BETAS, **_CLIP, **_THRESHOLD, **_LEADING, **_ZERO_SNR, "set_alpha_to_one": True},
    "DDPMScheduler": {**_BETAS, **_CLIP, **_THRESHOLD, **_LEADING, **_ZERO_SNR, "variance_type": "fixed_small"},
    "DPMSolverMultistepScheduler": {
        **_BETAS,
        **_THRESHOLD,
        **_LINSPACE,
        **_ZERO_SNR,
        **_SIGMAS,
        "solver_order": 2,
        "algorithm_type": "dpmsolver++",
        "solver_type": "midpoint",
        "lower_order_final": True,
        "euler_at_final": False,
        "use_lu_lambdas": False,
        "use_flow_sigmas": False,
        "flow_shift": 1.0,
        "final_sigmas_type": "zero",
        "lambda_min_clipped": -math.inf,
        "variance_type": None,
        "use_dynamic_shifting": False,
        "time_shift_type": "exponential",
    },
    "LCMScheduler": {
        **_BETAS,
        **_LATENT,
        **_CLIP,
        **_THRESHOLD,
        **_LEADING,
        **_ZERO_SNR,
        "beta_schedule": "scaled_linear",
        "original_inference_steps": 50,
        "clip_sample": False,
        "set_alpha_to_one": True,
        "timestep_scaling": 10.0,
    },
    "HeunDiscreteScheduler": {**_BETAS, **_LATENT, **_CLIP, **_LINSPACE, **_SIGMAS, "clip_sample": False},
    "EulerDiscreteScheduler": {
        **_BETAS,
        **_LINSPACE,
        **_SIGMAS,
        **_ZERO_SNR,
        "interpolation_type": "linear",
        "sigma_min": None,
        "sigma_max": None,
        "timestep_type": "discrete",
        "final_sigmas_type": "zero",
    },
    "EulerAncestralDiscreteScheduler": {**_BETAS, **_LINSPACE, **_ZERO_SNR},
    "FlowMatchEulerDiscreteScheduler": {
        **_SIGMAS,
        "num_train_timesteps": 1000,
        "shift": 1.0,
        "use_dynamic_shifting": False,
        "base_shift": 0.5,
        "max_shift": 1.15,
        "base_image_seq_len": 256,
        "max_image_seq_len": 4096,
        "invert_sigmas": False,
        "shift_terminal": None,
        "time_shift_type": "exponential",
        "stochastic_sampling": False,
    },
}

# Entries of other schedulers, which stay in a file that is saved again under one of these classes.
_LEFT_OVER = {"skip_prk_steps", "predict_x0", "solver_p", "disable_corrector", "set_alpha_to_zero"}
_KNOWN = _LEFT_OVER.union(*DEFAULTS.values())
