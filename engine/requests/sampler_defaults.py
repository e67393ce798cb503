"""What a sampler takes where the caller gives nothing: a model's defaults, and what one sampler shares with another."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from stepfuse.bundle.model_info import ModelInfo
from stepfuse.samplers import lcm
from stepfuse.samplers.adaptation import ADAPTIVE
from stepfuse.samplers.table import StepTable

#: Options of every sampler: ``StepTable.adapt`` and ``StepTable.with_zero_init``.
OF_TABLES = (*ADAPTIVE, "zero_init")

_DEFAULT_STEPS = 50
_LCM_STEPS = inspect.signature(lcm).parameters["original_steps"].default
_NAMED = ("sampler", "steps", "guidance_scale", "eta")  # arguments of their own, not options of a sampler

# Which options of a model's own sampler another one shares, where its bundle does not say what each sampler takes:
# those that diffusers keeps under one name in the configurations of both classes. Others are the own sampler's alone.
_EVERY = {"guidance_interval", *OF_TABLES} - {"dynamic_threshold"}
_LEVELS = {"karras", "levels", "sigma_min", "sigma_max"}
_SPACED, _BOUNDED = {"spacing", "steps_offset"}, {"clip", "dynamic_threshold"}
_SHARED: Mapping[str, set[str]] = {
    "ddim": _SPACED | _BOUNDED | {"eta"},
    "ddim_inverse": _SPACED,
    "ddpm": _SPACED | _BOUNDED,
    "ddpm_strided": _SPACED | _BOUNDED,
    "dpmpp_2m": _SPACED | _LEVELS | {"dynamic_threshold"},
    "dpmpp_2m_sde": _SPACED | _LEVELS | {"dynamic_threshold"},
    "dpmpp_3m_sde": _SPACED | _LEVELS | {"dynamic_threshold"},
    "dpmpp_sde": _SPACED | _LEVELS,
    "sa_solver": _SPACED | _LEVELS | {"dynamic_threshold"},
    "lcm": _BOUNDED | {"original_steps"},
    "heun": _SPACED | _LEVELS | {"clip"},
    "euler": _SPACED | _LEVELS,
    "euler_ancestral": _SPACED,
    "deis": _SPACED | _LEVELS,
    "plms": _SPACED,
    "lms": _SPACED | _LEVELS,
    "ipndm": _SPACED | _LEVELS,
    "dpmpp_2s": _LEVELS | {"dynamic_threshold"},
    "kdpm2": _SPACED | _LEVELS,
    "kdpm2_ancestral": _SPACED | _LEVELS,
    "tcd": {"original_steps"},
    "unipc": _SPACED | _LEVELS | {"dynamic_threshold"},
    "edm_euler": _LEVELS | {"rho", "final_sigma"},
    "edm_dpmpp_2m": _LEVELS | {"rho", "final_sigma", "dynamic_threshold"},
    "cm": {"rho"},
}
_OWN_LENGTHS = ("cfg_zero_star", "guidance_rescale", "cfg_pp")  # options that cfg_renorm is refused beside
_SAME_OPTIONS = {"ddim_inverse": "ddim", "ddpm_strided": "ddpm"}  # samplers that take another's options
_OF_NO_CLASS = {"ipndm"}  # samplers that no class of diffusers has on a model's levels


def default_steps(info: ModelInfo, sampler: str, options: Mapping[str, Any] = MappingProxyType({})) -> int:
    """Steps where the caller gives none: the model's default, and all of T for the original sampler.

    A model whose own sampler is the original one, respaced, says so with its steps. They are no more than the sampler
    takes with these options.
    """
    total = info.schedule.num_train_timesteps
    respaced = info.defaults.get("sampler") == "ddpm" and "steps" in info.defaults
    if sampler == "ddpm" and not respaced:
        return total
    original = options.get("original_steps", _LCM_STEPS)
    if sampler in ("dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m_sde", "dpmpp_2s", "sa_solver", "deis", "ipndm", "unipc"):
        total = max(total - 1, 1)
    elif (
        sampler in ("lcm", "tcd") and not info.schedule.is_flow and isinstance(original, int)
    ):  # the sampler refuses anything else
        total = min(total, original)
    return min(int(info.defaults.get("steps", _DEFAULT_STEPS)), total)


def default_eta(info: ModelInfo, function: Callable[..., StepTable]) -> float:
    """The model's default for its own sampler, and for one that shares it, else the sampler's own.

    What eta is where nothing is given differs by sampler: DDIM adds no noise, TCD three tenths, an SDE sampler all of
    the SDE's.
    """
    name = function.__name__
    default: float = inspect.signature(function).parameters["eta"].default
    return info.defaults.get("eta", default) if _is_own(info, name) or "eta" in _SHARED.get(name, ()) else default


def default_options(info: ModelInfo, function: Callable[..., StepTable]) -> dict[str, Any]:
    """The model's defaults for the options of a sampler: spacing, clip, ..., and ``OF_TABLES``.

    The model's own sampler has all of them. Another has what the model says of it in ``sampler_options``, else those
    that both share: an option of one sampler, such as DDIM's ``final_alpha_cumprod``, means something else in another.

    Raises:
        ValueError: If ``sampler_options`` of the model do not cover the sampler.
    """
    name = function.__name__
    accepted = {*inspect.signature(function).parameters, *OF_TABLES}
    options: Mapping[str, Any] = info.defaults
    if not _is_own(info, name):
        covering = _SAME_OPTIONS.get(name, name)
        if covering in info.sampler_options:
            options = {
                **{one: info.defaults[one] for one in _EVERY & set(info.defaults)},
                **info.sampler_options[covering],
            }
        elif info.sampler_options and name not in _OF_NO_CLASS:
            known = ", ".join([str(info.defaults["sampler"]), *sorted(info.sampler_options)])
            raise ValueError(
                f"sampler must be one that the model's scheduler configuration covers, {known}, got {name!r}"
            )
        else:
            shared = _SHARED.get(name, set()) | _EVERY | (_SPACED if info.schedule.is_flow else set())
            options = {one: value for one, value in info.defaults.items() if one in shared}
    return {one: value for one, value in options.items() if one in accepted and one not in _NAMED}


def given_up(options: Mapping[str, Any], guidance_scale: float) -> set[str]:
    """The model's defaults for guidance that a call makes none of: it does not guide, or asks for another way."""
    unused = set()
    guided, apg, star = guidance_scale not in (0, 1), options.get("apg"), options.get("cfg_zero_star")
    if not guided or star or ("apg" in options and apg is None):
        unused |= {"apg", "apg_form"}
    if not guided or apg is not None:
        unused.add("cfg_zero_star")
    if not guided or apg is not None or any(options.get(name) for name in _OWN_LENGTHS):
        unused.add("cfg_renorm")
    return unused - options.keys()


def _is_own(info: ModelInfo, sampler: str) -> bool:
    """Whether a model's defaults are of this sampler, or of all."""
    own = info.defaults.get("sampler")
    return own is None or _SAME_OPTIONS.get(sampler, sampler) == own
