"""DPM-Solver and DPM-Solver++, by multistep and by single steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stepfuse.integrations.readers.entries import Entries
from stepfuse.integrations.readers.levels import levels_of, require_all_levels, require_signal
from stepfuse.integrations.readers.options import bounds_of, require_no_variance, spacing_of
from stepfuse.samplers.schedule import NoiseSchedule


def read_dpmpp_2m(config: Entries, schedule: NoiseSchedule) -> dict[str, Any]:
    """``DPMSolverMultistepScheduler``, on the ODE or, by its ``algorithm_type``, the diffusion SDE."""
    require_signal(config)
    require_no_variance(config)
    config.require("use_flow_sigmas", False, None, why=f" with prediction_type {config['prediction_type']!r}")
    algorithm = _algorithm(config, "dpmsolver++", "sde-dpmsolver++")
    sampler = "dpmpp_2m_sde" if algorithm == "sde-dpmsolver++" else "dpmpp_2m"
    if sampler == "dpmpp_2m":
        order = config.require("solver_order", 1, 2, 3)
    else:  # diffusers' third order weighs the estimate's second derivative by -1 where the step is short, not by 0
        order = config.require("solver_order", 1, 2, why=" with algorithm_type 'sde-dpmsolver++'")
    levels = levels_of(config, schedule)
    if config["use_lu_lambdas"] and not levels.get("karras"):  # before the others, and without their ends
        levels = {"levels": "lu"}
    rounded = next((key for key in ("use_karras_sigmas", "use_lu_lambdas") if config[key]), None)
    if rounded and config["trained_betas"] is None:  # diffusers truncates these timesteps where it rounds all others
        config.require("beta_schedule", "linear", "scaled_linear", why=f" with {rounded}")
    require_all_levels(config, schedule)
    options = {
        "sampler": sampler,
        **levels,
        "order": order,
        "solver_type": _solver_type(config),
        "lower_order_final": bool(config["lower_order_final"]),
        **spacing_of(config),
        **bounds_of(config),
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


def read_dpmpp_2s(config: Entries, schedule: NoiseSchedule) -> dict[str, Any]:
    """``DPMSolverSinglestepScheduler``, on the ODE alone."""
    predict_x0 = _algorithm(config, "dpmsolver++") != "dpmsolver"
    require_no_variance(config)
    config.require("use_flow_sigmas", False, None)
    require_all_levels(config, schedule)
    options = {
        "sampler": "dpmpp_2s",
        **levels_of(config, schedule),
        "order": config.require("solver_order", 1, 2, 3),
        "solver_type": _solver_type(config),
        "lower_order_final": bool(config["lower_order_final"]),
        "predict_x0": predict_x0,
        **bounds_of(config),
    }
    if config["final_sigmas_type"] == "sigma_min":
        options["final_alpha_cumprod"] = float(schedule.alphas_cumprod[0])
    return options


def dpmpp_2m_on_flow(config: Entries) -> dict[str, Any]:
    """``DPMSolverMultistepScheduler`` on the noise levels of a flow, as Sana has it."""
    require_no_variance(config)
    why = " with use_flow_sigmas"
    for key, only in (("algorithm_type", "dpmsolver++"), ("final_sigmas_type", "zero")):
        config.require(key, only, why=why)
    config.require("use_lu_lambdas", False, None, why=why)
    config.require("use_dynamic_shifting", False, None, why=why)
    return {
        "sampler": "dpmpp_2m",
        "order": config.require("solver_order", 1, 2, 3),
        "solver_type": _solver_type(config),
        "lower_order_final": bool(config["lower_order_final"]),
        "euler_at_final": bool(config["euler_at_final"]),
        "spacing": "linspace",  # whatever levels a pipeline gives other schedulers
        **bounds_of(config),
    }


def _solver_type(config: Entries) -> str:
    """The constructor takes the last three for the first."""
    given = config.require("solver_type", "midpoint", "heun", "logrho", "bh1", "bh2")
    return "heun" if given == "heun" else "midpoint"


def _algorithm(config: Entries, *with_clean_ends: str) -> str:
    """What the constructor of a DPM-Solver takes its ``algorithm_type`` for; the noise is not led to a clean end."""
    why, allowed = " with final_sigmas_type 'zero'", with_clean_ends
    if config.require("final_sigmas_type", "zero", "sigma_min") == "sigma_min":
        why, allowed = "", (*allowed, "deis", "dpmsolver")
    algorithm: str = config.require("algorithm_type", *allowed, why=why)
    if algorithm == "dpmsolver":
        config.require("thresholding", False, None, why=" with algorithm_type 'dpmsolver'")
    return "dpmsolver++" if algorithm == "deis" else algorithm


def third_order(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of ``dpmpp_3m_sde``, which is of k-diffusion alone, from those of ``dpmpp_2m_sde``."""
    own = ("sampler", "order", "solver_type", "lower_order_final")
    return {name: value for name, value in options.items() if name not in own}
