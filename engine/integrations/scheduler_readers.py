"""How each class of diffusers' schedulers is read: its entries, checked, as noise levels and a sampler's options."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import numpy as np

from stepfuse.integrations.scheduler_entries import DEFAULTS
from stepfuse.samplers.coefficients import TINY_ALPHA
from stepfuse.samplers.dynamic_shift import DynamicShift
from stepfuse.samplers.schedule import NoiseSchedule

FLOW = "FlowMatchEulerDiscreteScheduler"
_RULES = {"use_karras_sigmas": "karras", "use_exponential_sigmas": "exponential", "use_beta_sigmas": "beta"}
FLOWS = (FLOW, "FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler")
DPM_SOLVER = "DPMSolverMultistepScheduler"
_KARRAS_OF_ALL = ("LMSDiscreteScheduler", "DPMSolverSDEScheduler")  # they look for no ends of Karras' levels
#: Each ``algorithm_type`` by which a class is one of our samplers.
ALGORITHMS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    DPM_SOLVER: {"dpmpp_2m": ("dpmsolver++", "dpmsolver"), "dpmpp_2m_sde": ("sde-dpmsolver++",)},
    "DPMSolverSinglestepScheduler": {"dpmpp_2s": ("dpmsolver++", "dpmsolver")},
    "DEISMultistepScheduler": {"deis": ("deis", "dpmsolver++", "dpmsolver")},
    "SASolverScheduler": {"sa_solver": ("data_prediction", "noise_prediction")},
}


def with_algorithm(name: str, sampler: str, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The configuration by which a class is this sampler: ``from_config(config, algorithm_type=...)``."""
    kinds = ALGORITHMS.get(name, {}).get(sampler)
    if kinds is None or config.get("algorithm_type") in kinds:
        return config
    return {**config, "algorithm_type": kinds[0]}


class EntryError(ValueError):
    """An entry that is not covered; other classes may do without it."""


class Entries(Mapping[str, Any]):
    """A configuration with its class's defaults filled in.

    Attributes:
        given: All entries, those of other classes among them.
    """

    def __init__(self, name: str, values: Mapping[str, Any]) -> None:
        self.name = name
        self.given = values
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
            self.refuse(key, value, " or ".join(repr(one) for one in allowed) + why)
        return value

    def number(self, key: str, rule: str = "a number", holds: Callable[[float], bool] = math.isfinite) -> float:
        """The value of an entry that must be a number, and of which ``holds`` is true."""
        value = self._values[key]
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"{self.name}: {key} must be {rule}, got {value!r}")
        if not holds(value):
            raise ValueError(f"{self.name}: {key} must be {rule}, got {value!r}")
        return float(value)

    def refuse(self, key: str, value: Any, rule: str) -> NoReturn:
        """Refuses an entry that changes the numbers in a way that is not covered."""
        raise EntryError(f"{self.name}: {key} must be {rule}, got {value!r}")


def schedule_of(config: Entries) -> NoiseSchedule:
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
            schedule = make(config.number("beta_start"), config.number("beta_end"), total)
    return schedule.rescale_zero_terminal_snr() if config.get("rescale_betas_zero_snr") else schedule


def flow_schedule_of(config: Entries) -> NoiseSchedule:
    """The noise levels of ``FLOWS``."""
    if "invert_sigmas" in config:
        config.require("invert_sigmas", False, None)
    shift = config.number("shift", "above 0", lambda shift: 0 < shift < math.inf)
    return NoiseSchedule.flow(shift, config["num_train_timesteps"])


def dynamic_shift_of(config: Entries) -> DynamicShift | None:
    """How the shift of ``FLOWS`` follows from a picture's size, where it does."""
    if "use_dynamic_shifting" not in config:
        return None
    kind = config.require("time_shift_type", "exponential", "linear")
    if not config["use_dynamic_shifting"]:
        return None
    rule = "a number between -20 and 20 with use_dynamic_shifting"
    low, high = (config.number(key, rule, lambda line: abs(line) <= 20) for key in ("base_shift", "max_shift"))
    base, most = config["base_image_seq_len"], config["max_image_seq_len"]
    if type(base) is not int or base < 1:
        config.refuse("base_image_seq_len", base, "a whole number of at least 1 with use_dynamic_shifting")
    if type(most) is not int or not base < most < 1 << 31:
        config.refuse("max_image_seq_len", most, f"a whole number above base_image_seq_len, {base}")
    return DynamicShift(low, high, base, most, kind == "exponential")


def _ddim(config: Entries, schedule: NoiseSchedule) -> dict[str, Any]:
    options = {"sampler": "ddim", "fixed_stride": True, **_spacing(config), **_bounds(config)}
    if not config["set_alpha_to_one"]:
        options["final_alpha_cumprod"] = float(schedule.alphas_cumprod[0])
    return options


def _ddpm(config: Entries, schedule: NoiseSchedule) -> dict[str, Any]:
    kind = config.require("variance_type", "fixed_small", "fixed_small_log", "fixed_large")
    variance = "beta" if kind == "fixed_large" else "posterior"
    return {"sampler": "ddpm", "variance": variance, **_spacing(config), **_bounds(config)}


def _dpmpp_2m(config: Entries, schedule: NoiseSchedule) -> dict[str, Any]:
    _require_signal(config)
    algorithm = _algorithm(config, "dpmsolver++", "sde-dpmsolver++")
    sampler = "dpmpp_2m_sde" if algorithm == "sde-dpmsolver++" else "dpmpp_2m"
    # The constructor takes the last three for the first.
    solver_type = config.require("solver_type", "midpoint", "heun", "logrho", "bh1", "bh2")
    order = config.require("solver_order", *((1, 2, 3) if sampler == "dpmpp_2m" else (1, 2)))
    _require_no_variance(config)
    config.require("use_flow_sigmas", False, None)
    levels = _levels(config, schedule)
    if config["use_lu_lambdas"] and not levels.get("karras"):  # before the others, and without their ends
        levels = {"levels": "lu"}
    rounded = next((key for key in ("use_karras_sigmas", "use_lu_lambdas") if config[key]), None)
    if rounded and config["trained_betas"] is None:  # diffusers truncates these timesteps where it rounds all others
        config.require("beta_schedule", "linear", "scaled_linear", why=f" with {rounded}")
    _require_all_levels(config, schedule)
    options = {
        "sampler": sampler,
        **levels,
        "order": order,
        "solver_type": "heun" if solver_type == "heun" else "midpoint",
        "lower_order_final": bool(config["lower_order_final"]),
        **_spacing(config),
        **_bounds(config),
    }
    if algorithm == "dpmsolver":
        options["predict_x0"] = False
    if config["final_sigmas_type"] == "sigma_min":
        options["final_alpha_cumprod"] = float(schedule.alphas_cumprod[0])
        if sampler == "dpmpp_2m":
            options["euler_at_final"] = bool(config["euler_at_final"])
        else:
            config.require("euler_at_final", False, why=" with final_sigmas_type 'sigma_min'")
    return options


def _algorithm(config: Entries, *with_clean_ends: str) -> str:
    """What the constructor of a DPM-Solver takes its ``algorithm_type`` for; the noise is not led to a clean end."""
    why, allowed = " with final_sigmas_type 'zero'", with_clean_ends
    if config.require("final_sigmas_type", "zero", "sigma_min") == "sigma_min":
        why, allowed = "", (*allowed, "deis", "dpmsolver")
    algorithm: str = config.require("algorithm_type", *allowed, why=why)
    if algorithm == "dpmsolver":
        config.require("thresholding", False, None, why=" with algorithm_type 'dpmsolver'")
    return "dpmsolver++" if algorithm == "deis" else algorithm


def _dpmpp_2s(config: Entries, schedule: NoiseSchedule) -> dict[str, Any]:
    predict_x0 = _algorithm(config, "dpmsolver++") != "dpmsolver"
    # The constructor takes the last three for the first.
    solver_type = config.require("solver_type", "midpoint", "heun", "logrho", "bh1", "bh2")
    _require_no_variance(config)
    config.require("use_flow_sigmas", False, None)
    _require_all_levels(config, schedule)
    options = {
        "sampler": "dpmpp_2s",
        **_levels(config, schedule),
        "order": config.require("solver_order", 1, 2, 3),
        "solver_type": "heun" if solver_type == "heun" else "midpoint",
        "lower_order_final": bool(config["lower_order_final"]),
        "predict_x0": predict_x0,
        **_bounds(config),
    }
    if config["final_sigmas_type"] == "sigma_min":
        options["final_alpha_cumprod"] = float(schedule.alphas_cumprod[0])
    return options


def _require_no_variance(config: Entries) -> None:
    """Refuses networks that predict a variance, too; other variances are DDPM's, and mean nothing to a solver."""
    if config["variance_type"] in ("learned", "learned_range"):
        config.refuse("variance_type", config["variance_type"], "neither 'learned' nor 'learned_range'")


def _require_all_levels(config: Entries, schedule: NoiseSchedule) -> None:
    """Refuses a bound on log-SNR that would leave out levels."""
    with np.errstate(divide="ignore"):
        log_snr = np.log(schedule.alphas_cumprod / (1 - schedule.alphas_cumprod)) / 2
    bound = config.number("lambda_min_clipped", "a number", lambda value: not math.isnan(value))
    if bound > np.where(np.isfinite(log_snr), log_snr, math.log(2.0**-12)).min():
        config.require("lambda_min_clipped", -math.inf)


def third_order(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of ``dpmpp_3m_sde``, which is of k-diffusion alone, from those of ``dpmpp_2m_sde``."""
    own = ("sampler", "order", "solver_type", "lower_order_final")
    return {name: value for name, value in options.items() if name not in own}


def _heun(config: Entries, schedule: NoiseSchedule) -> dict[str, Any]:
    return {"sampler": "heun", **_levels(config, schedule), **_spacing(config), **_bounds(config)}


def _lcm(config: Entries, schedule: NoiseSchedule) -> dict[str, Any]:
    _require_signal(config)
    config.require("timestep_scaling", 10.0)
    return {"sampler": "lcm", "original_steps": _original_steps(config), **_bounds(config)}


def _tcd(config: Entries, schedule: NoiseSchedule) -> dict[str, Any]:
    """Its step reads neither clipping nor thresholding, and always ends at the schedule's least noise."""
    _require_signal(config)
    final = float(schedule.alphas_cumprod[0])
    return {"sampler": "tcd", "original_steps": _original_steps(config), "final_alpha_cumprod": final}


def _euler(config: Entries, schedule: NoiseSchedule) -> dict[str, Any]:
    _require_signal(config)
    levels = _levels(config, schedule)
    config.require("interpolation_type", "linear")
    config.require("final_sigmas_type", "zero")
    if config["prediction_type"] == "v_prediction":
        config.require("timestep_type", "discrete", why=" with prediction_type 'v_prediction'")
    return {"sampler": "euler", **levels, **_spacing(config)}


def _euler_ancestral(config: Entries, schedule: NoiseSchedule) -> dict[str, Any]:
    _require_signal(config)
    config.require("prediction_type", "epsilon", "v_prediction")
    return {"sampler": "euler_ancestral", **_spacing(config)}


def _deis(config: Entries, schedule: NoiseSchedule) -> dict[str, Any]:
    config.require("algorithm_type", "deis", "dpmsolver", "dpmsolver++")  # the constructor takes others for the first
    config.require("solver_type", "logrho", "midpoint", "heun", "bh1", "bh2")
    for key in ("use_flow_sigmas", "thresholding"):
        config.require(key, False, None)
    levels = _levels(config, schedule)
    return {
        "sampler": "deis",
        **levels,
        "order": config.require("solver_order", 1, 2, 3),
        "lower_order_final": bool(config["lower_order_final"]),
        "final_alpha_cumprod": _least_noise(schedule, levels),
        **_spacing(config),
    }


def _dpmpp_sde(config: Entries, schedule: NoiseSchedule) -> dict[str, Any]:
    config.require("prediction_type", "epsilon", "v_prediction")
    config.require("noise_sampler_seed", None, why=", since noise comes from the seed of each request")
    return {"sampler": "dpmpp_sde", **_levels(config, schedule), **_spacing(config)}


def _sa_solver(config: Entries, schedule: NoiseSchedule) -> dict[str, Any]:
    _require_no_variance(config)
    _require_all_levels(config, schedule)
    predict_x0 = config.require("algorithm_type", "data_prediction", "noise_prediction") == "data_prediction"
    if not predict_x0:
        config.require("thresholding", False, None, why=" with algorithm_type 'noise_prediction'")
    config.require("tau_func", None)  # a function is in no file; its default is tau's
    config.require("use_flow_sigmas", False, None)
    levels = _levels(config, schedule)
    return {
        "sampler": "sa_solver",
        **levels,
        "predictor_order": config.require("predictor_order", 1, 2, 3, why=", since a table keeps no fourth estimate"),
        "corrector_order": config.require("corrector_order", 1, 2, 3, 4),
        "lower_order_final": bool(config["lower_order_final"]),
        "predict_x0": predict_x0,
        "final_alpha_cumprod": _least_noise(schedule, levels),
        **_spacing(config),
        **_bounds(config),
    }


def _plms(config: Entries, schedule: NoiseSchedule) -> dict[str, Any]:
    config.require("prediction_type", "epsilon", "v_prediction")
    why = ", since Runge-Kutta steps keep five states and predictions at once, more than a table's registers hold"
    config.require("skip_prk_steps", True, why=why)
    options = {"sampler": "plms", "fixed_stride": True, **_spacing(config)}
    if not config["set_alpha_to_one"]:
        options["final_alpha_cumprod"] = float(schedule.alphas_cumprod[0])
    return options


def _lms(config: Entries, schedule: NoiseSchedule) -> dict[str, Any]:
    return {"sampler": "lms", **_levels(config, schedule), **_spacing(config)}


def _kdpm2(config: Entries, schedule: NoiseSchedule) -> dict[str, Any]:
    config.require("prediction_type", "epsilon", "v_prediction")
    sampler = "kdpm2_ancestral" if config.name == "KDPM2AncestralDiscreteScheduler" else "kdpm2"
    return {"sampler": sampler, **_levels(config, schedule), **_spacing(config)}


def _unipc(config: Entries, schedule: NoiseSchedule) -> dict[str, Any]:
    _require_signal(config)
    config.require("use_flow_sigmas", False, None, why=f" with prediction_type {config['prediction_type']!r}")
    config.require("shift_terminal", None)
    predict_x0 = bool(config["predict_x0"])
    if not predict_x0:
        config.require("thresholding", False, None, why=" with predict_x0 False, since it bounds the clean sample")
    levels = _levels(config, schedule)
    options = {**_solver(config), **levels, "predict_x0": predict_x0, **_spacing(config)}
    if config.require("final_sigmas_type", "zero", "sigma_min") == "sigma_min":
        options["final_alpha_cumprod"] = _least_noise(schedule, levels)
    return {**options, **_bounds(config)}


def flow_unipc(config: Entries) -> tuple[NoiseSchedule, dict[str, Any]]:
    """UniPC on the noise levels of a flow, as Wan has it; what it says of betas and spacing has no effect there."""
    for key in _RULES:
        config.require(key, False, None, why=" with use_flow_sigmas")
    for key, only in (("predict_x0", True), ("final_sigmas_type", "zero")):
        config.require(key, only, why=" with use_flow_sigmas")
    shift = config.number("flow_shift", "above 0", lambda shift: 0 < shift < math.inf)
    schedule = NoiseSchedule.flow(shift, config["num_train_timesteps"])
    return schedule, {**_solver(config), **_shift_terminal(config), **_bounds(config)}


def flow_sampler_of(config: Entries) -> dict[str, Any]:
    """The sampler of ``FLOWS``, with options of its noise levels."""
    if config.name == "FlowMatchHeunDiscreteScheduler":
        return {"sampler": "heun"}
    if config.get("scale_factors"):
        config.require("scale_factors", None, why=", since a step keeps its sample's size")
    # The clean estimate, noised to the next level, is the step of one class, and of the other with this entry.
    is_consistency = config.name == "FlowMatchLCMScheduler" or config["stochastic_sampling"]
    return {
        "sampler": "lcm" if is_consistency else "euler",
        **_shift_terminal(config),
        **_chosen_levels(config, (1 / config["num_train_timesteps"], 1.0)),
    }


def _solver(config: Entries) -> dict[str, Any]:
    """UniPC's own settings, with any noise levels."""
    config.require("use_dynamic_shifting", False, None)
    config.require("solver_p", None)
    solver_type = config.require("solver_type", "bh1", "bh2", "midpoint", "heun", "logrho")
    uncorrected = config["disable_corrector"]
    if not isinstance(uncorrected, list | tuple) or any(type(i) is not int or i < 0 for i in uncorrected):
        config.refuse("disable_corrector", uncorrected, "a list of whole numbers of at least 0")
    return {
        "sampler": "unipc",
        "order": config.require("solver_order", 1, 2, 3),
        "solver_type": solver_type if solver_type in ("bh1", "bh2") else "bh2",  # the constructor takes others for it
        "lower_order_final": bool(config["lower_order_final"]),
        "disable_corrector": list(uncorrected),
    }


def _original_steps(config: Entries) -> int:
    """Steps of the solver that a consistency model was distilled with."""
    total = config["num_train_timesteps"]
    rule = f"a whole number from 1 to num_train_timesteps, {total}"
    return int(config.number("original_inference_steps", rule, lambda steps: steps in range(1, total + 1)))


def _spacing(config: Entries) -> dict[str, Any]:
    spacing = config.require("timestep_spacing", "leading", "trailing", "linspace")
    if spacing != "leading" or not config["steps_offset"]:
        return {"spacing": spacing}
    rule = "a whole number of at least 0"
    offset = config.number("steps_offset", rule, lambda offset: offset >= 0 and offset % 1 == 0)
    return {"spacing": spacing, "steps_offset": int(offset)}


def _bounds(config: Entries) -> dict[str, Any]:
    """How the clean estimate is bounded: by thresholding if that is set, else by clipping."""
    if config.get("thresholding"):
        largest = config.number("sample_max_value", "at least 1 with thresholding", lambda largest: largest >= 1)
        rule = "above 0 and at most 1 with thresholding"
        return {"dynamic_threshold": (config.number("dynamic_thresholding_ratio", rule, lambda r: 0 < r <= 1), largest)}
    if config.get("clip_sample"):
        return {"clip": config.number("clip_sample_range", "above 0 with clip_sample", lambda bound: bound > 0)}
    return {}


def _require_signal(config: Entries) -> None:
    """Refuses noise estimates at a level without signal, from which these samplers begin with any spacing."""
    if config["rescale_betas_zero_snr"] and config["prediction_type"] == "epsilon":
        config.refuse(
            "rescale_betas_zero_snr", config["rescale_betas_zero_snr"], "False with prediction_type 'epsilon'"
        )


def _levels(config: Entries, schedule: NoiseSchedule) -> dict[str, Any]:
    """The noise levels that a scheduler takes, between the bounds of the schedule or narrower ones."""
    least, most = ((1 - a) / max(a, TINY_ALPHA) for a in schedule.alphas_cumprod[[0, -1]].tolist())
    options = _chosen_levels(config, (math.sqrt(least), math.sqrt(most)))
    if "levels" in options and options["levels"] != "karras":
        return options
    return {"karras": options.pop("levels", None) == "karras", **options}


def _chosen_levels(config: Entries, bounds: tuple[float, float]) -> dict[str, Any]:
    """The rule that noise levels follow, with its ends where a configuration has some; empty where there is none."""
    rules = [key for key in _RULES if config[key]]
    if not rules:
        return {}
    if len(rules) > 1:
        config.refuse(rules[1], config[rules[1]], f"False or None with {rules[0]}")
    options: dict[str, Any] = {"levels": _RULES[rules[0]]}
    low, high = bounds
    rule = f"a number within the schedule's noise levels, {low:.5g} to {high:.5g}, with {rules[0]}"
    if rules[0] == "use_karras_sigmas" and config.name in _KARRAS_OF_ALL:
        return options
    for key in ("sigma_min", "sigma_max"):  # entries of two classes, but every other looks for them too
        if config.given.get(key) is not None:
            options[key] = config.given[key]
            if type(options[key]) not in (int, float) or not low <= options[key] <= high:
                config.refuse(key, options[key], rule)
    if not options.get("sigma_min", low) < options.get("sigma_max", high):
        config.refuse("sigma_min", config.given["sigma_min"], f"below sigma_max, {config.given['sigma_max']!r}")
    return options


def _least_noise(schedule: NoiseSchedule, levels: Mapping[str, Any]) -> float:
    """Share of signal at the lower end of a scheduler's noise levels."""
    return 1 / (1 + levels["sigma_min"] ** 2) if "sigma_min" in levels else float(schedule.alphas_cumprod[0])


def _shift_terminal(config: Entries) -> dict[str, Any]:
    if not config["shift_terminal"]:  # 0, too, leaves the levels as they are
        return {}
    rule = "a number above 0 and below 1, or None"
    return {"shift_terminal": config.number("shift_terminal", rule, lambda end: 0 < end < 1)}


READERS: dict[str, Callable[[Entries, NoiseSchedule], dict[str, Any]]] = {
    "DDIMScheduler": _ddim,
    "DDPMScheduler": _ddpm,
    DPM_SOLVER: _dpmpp_2m,
    "LCMScheduler": _lcm,
    "HeunDiscreteScheduler": _heun,
    "EulerDiscreteScheduler": _euler,
    "EulerAncestralDiscreteScheduler": _euler_ancestral,
    FLOW: lambda config, schedule: flow_sampler_of(config),
    "DEISMultistepScheduler": _deis,
    "DPMSolverSDEScheduler": _dpmpp_sde,
    "SASolverScheduler": _sa_solver,
    "PNDMScheduler": _plms,
    "UniPCMultistepScheduler": _unipc,
    "LMSDiscreteScheduler": _lms,
    "DPMSolverSinglestepScheduler": _dpmpp_2s,
    "KDPM2DiscreteScheduler": _kdpm2,
    "KDPM2AncestralDiscreteScheduler": _kdpm2,
    "TCDScheduler": _tcd,
    "FlowMatchHeunDiscreteScheduler": lambda config, schedule: flow_sampler_of(config),
    "FlowMatchLCMScheduler": lambda config, schedule: flow_sampler_of(config),
}
