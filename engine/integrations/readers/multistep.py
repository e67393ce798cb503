"""Classes that extrapolate with the predictions of earlier steps: DEIS, PNDM, SA-Solver, UniPC."""

from __future__ import annotations

from typing import Any

from stepfuse.integrations.readers.entries import Entries
from stepfuse.integrations.readers.levels import least_noise, levels_of, require_all_levels, require_signal
from stepfuse.integrations.readers.options import bounds_of, require_no_variance, spacing_of
from stepfuse.samplers.schedule import NoiseSchedule


def read_deis(config: Entries, schedule: NoiseSchedule) -> dict[str, Any]:
    """``DEISMultistepScheduler``, which ends at the least noise."""
    config.require("algorithm_type", "deis", "dpmsolver", "dpmsolver++")  # the constructor takes others for the first
    config.require("solver_type", "logrho", "midpoint", "heun", "bh1", "bh2")
    for key in ("use_flow_sigmas", "thresholding"):
        config.require(key, False, None)
    levels = levels_of(config, schedule)
    return {
        "sampler": "deis",
        **levels,
        "order": config.require("solver_order", 1, 2, 3),
        "lower_order_final": bool(config["lower_order_final"]),
        "final_alpha_cumprod": least_noise(schedule, levels),
        **spacing_of(config),
    }


def read_plms(config: Entries, schedule: NoiseSchedule) -> dict[str, Any]:
    """``PNDMScheduler`` without Runge-Kutta steps."""
    config.require("prediction_type", "epsilon", "v_prediction")
    why = ", since Runge-Kutta steps keep five states and predictions at once, more than a table's registers hold"
    config.require("skip_prk_steps", True, why=why)
    options = {"sampler": "plms", "fixed_stride": True, **spacing_of(config)}
    if not config["set_alpha_to_one"]:
        options["final_alpha_cumprod"] = float(schedule.alphas_cumprod[0])
    return options


def read_sa_solver(config: Entries, schedule: NoiseSchedule) -> dict[str, Any]:
    """``SASolverScheduler``, which ends at the least noise."""
    require_no_variance(config)
    require_all_levels(config, schedule)
    predict_x0 = config.require("algorithm_type", "data_prediction", "noise_prediction") == "data_prediction"
    if not predict_x0:
        config.require("thresholding", False, None, why=" with algorithm_type 'noise_prediction'")
    config.require("tau_func", None)  # a function is in no file; its default is tau's
    config.require("use_flow_sigmas", False, None)
    levels = levels_of(config, schedule)
    return {
        "sampler": "sa_solver",
        **levels,
        "predictor_order": config.require("predictor_order", 1, 2, 3, why=", since a table keeps no fourth estimate"),
        "corrector_order": config.require("corrector_order", 1, 2, 3, 4),
        "lower_order_final": bool(config["lower_order_final"]),
        "predict_x0": predict_x0,
        "final_alpha_cumprod": least_noise(schedule, levels),
        **spacing_of(config),
        **bounds_of(config),
    }


def read_unipc(config: Entries, schedule: NoiseSchedule) -> dict[str, Any]:
    """``UniPCMultistepScheduler``, but for the noise levels of a flow."""
    require_signal(config)
    config.require("use_flow_sigmas", False, None, why=f" with prediction_type {config['prediction_type']!r}")
    config.require("shift_terminal", None)
    predict_x0 = bool(config["predict_x0"])
    if not predict_x0:
        config.require("thresholding", False, None, why=" with predict_x0 False, since it bounds the clean sample")
    levels = levels_of(config, schedule)
    options = {**unipc_options(config), **levels, "predict_x0": predict_x0, **spacing_of(config)}
    if config.require("final_sigmas_type", "zero", "sigma_min") == "sigma_min":
        options["final_alpha_cumprod"] = least_noise(schedule, levels)
    return {**options, **bounds_of(config)}


def unipc_options(config: Entries) -> dict[str, Any]:
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
