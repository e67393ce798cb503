"""The noise levels that a scheduler's entries say: its schedule, and which of its levels a run visits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from stepfuse.integrations.readers.entries import Entries
from stepfuse.samplers.coefficients import TINY_ALPHA
from stepfuse.samplers.schedule import NoiseSchedule

RULES = {"use_karras_sigmas": "karras", "use_exponential_sigmas": "exponential", "use_beta_sigmas": "beta"}
_KARRAS_OF_ALL = ("LMSDiscreteScheduler", "DPMSolverSDEScheduler")  # they look for no ends of Karras' levels


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


def levels_of(config: Entries, schedule: NoiseSchedule) -> dict[str, Any]:
    """The noise levels that a scheduler takes, between the bounds of the schedule or narrower ones."""
    least, most = ((1 - a) / max(a, TINY_ALPHA) for a in schedule.alphas_cumprod[[0, -1]].tolist())
    options = chosen_levels(config, (math.sqrt(least), math.sqrt(most)))
    if "levels" in options and options["levels"] != "karras":
        return options
    return {"karras": options.pop("levels", None) == "karras", **options}


def chosen_levels(config: Entries, bounds: tuple[float, float]) -> dict[str, Any]:
    """The rule that noise levels follow, with its ends where a configuration has some; empty where there is none."""
    rules = [key for key in RULES if config[key]]
    if not rules:
        return {}
    if len(rules) > 1:
        config.refuse(rules[1], config[rules[1]], f"False or None with {rules[0]}")
    options: dict[str, Any] = {"levels": RULES[rules[0]]}
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


def least_noise(schedule: NoiseSchedule, levels: Mapping[str, Any]) -> float:
    """Share of signal at the lower end of a scheduler's noise levels."""
    return 1 / (1 + levels["sigma_min"] ** 2) if "sigma_min" in levels else float(schedule.alphas_cumprod[0])


def require_signal(config: Entries) -> None:
    """Refuses noise estimates at a level without signal, from which these samplers begin with any spacing."""
    if config["rescale_betas_zero_snr"] and config["prediction_type"] == "epsilon":
        config.refuse(
            "rescale_betas_zero_snr", config["rescale_betas_zero_snr"], "False with prediction_type 'epsilon'"
        )


def require_all_levels(config: Entries, schedule: NoiseSchedule) -> None:
    """Refuses a bound on log-SNR that would leave out levels."""
    with np.errstate(divide="ignore"):
        log_snr = np.log(schedule.alphas_cumprod / (1 - schedule.alphas_cumprod)) / 2
    bound = config.number("lambda_min_clipped", "a number", lambda value: not math.isnan(value))
    if bound > np.where(np.isfinite(log_snr), log_snr, math.log(2.0**-12)).min():
        config.require("lambda_min_clipped", -math.inf)
