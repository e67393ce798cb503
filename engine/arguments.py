"""What a caller gives: numbers of Python's or numpy's as Python's, and hints where the name is another library's."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from functools import wraps
from inspect import signature
from typing import Any, ParamSpec, TypeVar

import numpy as np

from stepfuse.display import NAME, did_you_mean, printable

Class = TypeVar("Class", bound=type)
Given = ParamSpec("Given")
Result = TypeVar("Result")

#: What arguments of diffusers and other libraries are called here.
_NAMES: Mapping[str, str] = {
    **dict.fromkeys(("num_inference_steps", "num_steps", "inference_steps", "n_steps"), "steps"),
    **dict.fromkeys(("generator", "random_seed", "manual_seed", "rng"), "seed"),
    **dict.fromkeys(
        ("num_images_per_prompt", "batch_size", "num_samples", "num_images"), "n, num_images of TextToImage"
    ),
    **dict.fromkeys(("cfg_scale", "cfg", "guidance"), "guidance_scale"),
    "true_cfg_scale": "guidance_scale, of models that do not take the scale as an input",
    "cfg_normalization": "cfg_renorm",
    **dict.fromkeys(("class_labels", "labels", "y", "prompt"), "cond, prompt of TextToImage"),
    "negative_prompt": "negative_cond, negative_prompt of TextToImage",
    "latents": "noise, latents of TextToImage",
    "scheduler": "sampler",
    "sigmas": "timesteps",
    "mask_image": "mask",
    "init_image": "image",
    "callback_on_step_end": "callback",
    "timestep_spacing": "spacing",
    "use_karras_sigmas": "karras",
    "use_exponential_sigmas": "levels='exponential'",
    "use_beta_sigmas": "levels='beta'",
    "use_lu_lambdas": "levels='lu'",
    **dict.fromkeys(("clip_sample", "clip_sample_range"), "clip"),
    **dict.fromkeys(("thresholding", "dynamic_thresholding_ratio", "sample_max_value"), "dynamic_threshold"),
    **dict.fromkeys(("set_alpha_to_one", "final_sigmas_type"), "final_alpha_cumprod"),
    "use_clipped_model_output": "clipped_eps",
    "original_inference_steps": "original_steps",
    "variance_type": "variance",
    **dict.fromkeys(("adaptive_projected_guidance_rescale", "norm_threshold"), "apg=(eta, norm_threshold)"),
    "adaptive_projected_guidance_momentum": "apg, which has no momentum",
    "zero_init_steps": "zero_init",
    "controlnet_conditioning_scale": "control_scale",
    **dict.fromkeys(("control_guidance_start", "control_guidance_end"), "control_range=(begin, end)"),
    "control_image": "control={name: picture}",
    "output_type": "none: Pictures have pixels and latents",
    "guess_mode": "not done: a ControlNet acts in both passes of guidance",
    "clip_skip": "an option of export, --clip-skip",
    **dict.fromkeys(
        ("aesthetic_score", "negative_aesthetic_score", "original_size", "target_size", "crops_coords_top_left"),
        "time_ids in prompt_embeds",
    ),
    **dict.fromkeys(("loras", "adapters", "cross_attention_kwargs", "joint_attention_kwargs"), "lora"),
}

#: Which call takes an argument that another one is given.
_BELONGS: Mapping[str, str] = {
    **dict.fromkeys(("priority", "deadline", "timeout", "id"), "asample, and of the request of submit and stream"),
    "wait": "submit and stream",
    **dict.fromkeys(("progress", "callback"), "Engine.sample and of a call of TextToImage"),
    **dict.fromkeys(("n", "on_state"), "Engine.sample"),
    **dict.fromkeys(("cond", "negative_cond", "table", "noise"), "Engine.sample and Request"),
    **dict.fromkeys(
        (
            *("width", "height", "prompt_embeds", "negative_prompt_embeds", "sample_posterior"),
            *("control", "control_scale", "control_range"),
        ),
        "a call of TextToImage and PromptRequest",
    ),
    **dict.fromkeys(
        ("sampler", "steps", "guidance_scale", "eta", "seed", "image", "mask", "strength", "lora", "options"),
        "requests, Engine.sample and a call of TextToImage",
    ),
    **dict.fromkeys(("device", "threads", "spinning", "max_rows", "deterministic", "serving", "verify"), "load"),
    **dict.fromkeys(("backend", "precision", "lora_bytes"), "load"),
    "abort": "close",
}


_PLAIN = frozenset((bool, int, float, str))


def plain(value: Any) -> Any:
    """What numpy has made as numbers and lists of Python, within tuples, lists and dicts too; a range as a list.

    Raises:
        ValueError: If it nests too deeply.
    """
    try:
        return _plain(value)
    except RecursionError as error:
        raise ValueError("values must not nest as deeply as this") from error


def _plain(value: Any) -> Any:
    if value is None or type(value) in _PLAIN:  # nearly all: numpy's types are of others
        return value
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, tuple):
        return tuple(_plain(one) for one in value)
    return [_plain(one) for one in value] if isinstance(value, list | range) else value


def whole_number(name: str, value: Any, rule: str = "a whole number") -> int:
    """An int of Python's or numpy's, also as an array of no dimension; truth values are none.

    Raises:
        TypeError: If it is something else.
    """
    found = _scalar(value)
    if isinstance(found, bool) or not isinstance(found, int):
        raise TypeError(f"{name} must be {rule}, got {value!r}")
    return found


def number(name: str, value: Any) -> float:
    """A whole number or a float of Python's or numpy's, also as an array of no dimension; truth values are none.

    Raises:
        TypeError: If it is something else.
    """
    found = _scalar(value)
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise TypeError(f"{name} must be a number, got {value!r}")
    return found


def require_seconds(name: str, seconds: float | None) -> None:
    """Refuses a time to wait that is negative or NaN; None is no limit.

    Raises:
        ValueError: If it is.
        TypeError: If it is not a number.
    """
    if seconds is not None and not number(name, seconds) >= 0:
        raise ValueError(f"{name} must be at least 0 seconds, got {seconds}")


def truth_value(name: str, value: Any) -> bool:
    """A bool of Python's or numpy's, also as an array of no dimension.

    Raises:
        TypeError: If it is something else.
    """
    found = _scalar(value)
    if not isinstance(found, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return found


def refuse_unknown(taker: str, known: Collection[str], given: Iterable[str]) -> None:
    """Refuses arguments that there are not, with what those of another library are called here, or whose they are.

    Raises:
        TypeError: If one of ``given`` is not in ``known``.
    """
    unknown = [name for name in given if name not in known]
    if unknown:
        raise TypeError(
            f"{taker} takes {', '.join(known)}, got {', '.join(_with_hint(name, known) for name in unknown)}"
        )


def _with_hint(name: str, known: Collection[str]) -> str:
    if name in _NAMES:
        return f"{name} (here: {_NAMES[name]})"
    if name in _BELONGS:
        return f"{name} (an argument of {_BELONGS[name]})"
    return printable(name, NAME) + did_you_mean(name, known)


def hinted(call: Callable[Given, Result]) -> Callable[Given, Result]:
    """Has a method refuse unknown keywords with ``refuse_unknown``."""
    known = [name for name in signature(call).parameters if name not in ("self", "cls")]

    @wraps(call)
    def checked(*args: Given.args, **kwargs: Given.kwargs) -> Result:
        refuse_unknown(call.__qualname__, known, kwargs)
        return call(*args, **kwargs)

    return checked


def with_hints(kind: Class) -> Class:
    """Has a class's constructor refuse unknown keywords with ``refuse_unknown``."""
    construct: Callable[..., None] = kind.__init__  # type: ignore[misc]
    known = list(signature(construct).parameters)[1:]

    @wraps(construct)
    def constructor(self: Any, *args: Any, **kwargs: Any) -> None:
        refuse_unknown(kind.__name__, known, kwargs)
        construct(self, *args, **kwargs)

    kind.__init__ = constructor  # type: ignore[misc]
    return kind


def _scalar(value: Any) -> Any:
    is_one = isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0)
    return value.item() if is_one else value
