"""Classes on the noise levels of a flow."""

from __future__ import annotations

import math
from typing import Any

from stepfuse.integrations.readers.dpm_solver import dpmpp_2m_on_flow
from stepfuse.integrations.readers.entries import Entries
from stepfuse.integrations.readers.levels import RULES, chosen_levels
from stepfuse.integrations.readers.multistep import unipc_options
from stepfuse.integrations.readers.options import bounds_of
from stepfuse.samplers.dynamic_shift import DynamicShift
from stepfuse.samplers.schedule import NoiseSchedule

FLOW = "FlowMatchEulerDiscreteScheduler"
FLOWS = (FLOW, "FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler")


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
        **chosen_levels(config, (1 / config["num_train_timesteps"], 1.0)),
    }


def flow_sigmas_of(config: Entries) -> tuple[NoiseSchedule, dict[str, Any]] | None:
    """Schedule and sampler of a class with ``use_flow_sigmas`` and a network that predicts a flow, as Wan's and Sana's.

    What it says of betas and spacing has no effect there. None if the class has no such levels, or other ones.
    """
    if (
        config.name not in FLOW_SIGMAS
        or not config["use_flow_sigmas"]
        or config["prediction_type"] != "flow_prediction"
    ):
        return None
    for key in RULES:
        config.require(key, False, None, why=" with use_flow_sigmas")
    shift = config.number("flow_shift", "above 0", lambda shift: 0 < shift < math.inf)
    return NoiseSchedule.flow(shift, config["num_train_timesteps"]), FLOW_SIGMAS[config.name](config)


def _unipc(config: Entries) -> dict[str, Any]:
    for key, only in (("predict_x0", True), ("final_sigmas_type", "zero")):
        config.require(key, only, why=" with use_flow_sigmas")
    own = {"spacing": "linspace"}  # whatever levels a pipeline gives other schedulers
    return {**unipc_options(config), **own, **_shift_terminal(config), **bounds_of(config)}


def _shift_terminal(config: Entries) -> dict[str, Any]:
    if not config["shift_terminal"]:  # 0, too, leaves the levels as they are
        return {}
    rule = "a number above 0 and below 1, or None"
    return {"shift_terminal": config.number("shift_terminal", rule, lambda end: 0 < end < 1)}


#: Classes that step in log-SNR, on the noise levels of a flow, too.
FLOW_SIGMAS = {"UniPCMultistepScheduler": _unipc, "DPMSolverMultistepScheduler": dpmpp_2m_on_flow}
