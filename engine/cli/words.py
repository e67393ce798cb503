"""The words of errors: the API speaks of arguments, a command of its options.

The engine's errors begin with the argument that they are about (``guidance_scale must be ...``), so its option takes
the place of the name. Where an error gives a way out in Python, the command's own way out does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

#: What options of other tools are called here.
OPTIONS_ELSEWHERE: Mapping[str, str] = {
    **dict.fromkeys(("--overwrite", "--yes", "-y"), "--force"),
    **dict.fromkeys(("--num-inference-steps", "--inference-steps", "--num-steps"), "--steps"),
    **dict.fromkeys(("--cfg", "--cfg-scale", "--guidance", "--scale"), "--guidance-scale"),
    **dict.fromkeys(("--scheduler", "--sampling-method"), "--sampler"),
    **dict.fromkeys(("--num-images", "--num-samples", "--batch-size", "--batch-count", "--count"), "--number"),
    **dict.fromkeys(("--out", "--outdir", "--output-dir", "--save"), "--output"),
    **dict.fromkeys(("--class", "--class-labels", "--label"), "--cond"),
    **dict.fromkeys(("--init-img", "--init-image"), "--image"),
    **dict.fromkeys(("--prompts", "--from-file"), "--prompt-file"),
    "--schedule": "--spacing",
    "--verbose": "left out: --quiet says less",
}

#: What the API calls differently.
_ARGUMENTS = {
    "n": "--number",
    "num_images": "--number",
    "original_steps": "--sampler-option original_steps",
    "timesteps": "--sampler-option timesteps",
    "sigmas": "--sampler-option sigmas",
    "rho": "--sampler-option rho",
    "sigma_min": "--sampler-option sigma_min",
    "sigma_max": "--sampler-option sigma_max",
    "shift_terminal": "--sampler-option shift_terminal",
    "clip": "--sampler-option clip",
    "variance": "--sampler-option variance",
    "dynamic_threshold": "--sampler-option dynamic_threshold",
    "apg": "--sampler-option apg",
    "apg_form": "--sampler-option apg_form",
    "cfg_zero_star": "--sampler-option cfg_zero_star",
    "cfg_renorm": "--sampler-option cfg_renorm",
    "zero_init": "--sampler-option zero_init",
    "clipped_eps": "--sampler-option clipped_eps",
    "cfg_pp": "--sampler-option cfg_pp",
    "steps_offset": "--sampler-option steps_offset",
    "final_alpha_cumprod": "--sampler-option final_alpha_cumprod",
    "lower_order_final": "--sampler-option lower_order_final",
    "fixed_stride": "--sampler-option fixed_stride",
    "compute_capabilities": "--for",
    "sizes": "--size",
    "rates": "--rate",
    "backends": "--backend",
    "precisions": "--precision",
    "overwrite": "--force",
}

#: Ways out in Python, and what stands for them here.
_WAYS_OUT = (
    (re.compile(r"pass overwrite=True"), "give --force"),
    (re.compile(r"pass force=True"), "give --even-if-slower"),
    (re.compile(r" or stepfuse\.Cuda\(\.\.\.\)"), ""),
    (re.compile(r"'cuda', 'cuda:N', got"), "'cuda' or 'cuda:N', got"),
    (re.compile(r": load it with Engine$"), ""),
    (re.compile(r"in several calls, or with as_completed"), "in several runs"),
    (re.compile(r"^(image|mask|strength) needs an image, got image=None"), r"\1 needs --image"),
    (re.compile(r" must be given, got None"), " must be given"),
    (re.compile(r",? or None, got"), ", got"),
    (
        re.compile(r"name the compute capabilities that the plan is for, such as '8\.9'"),
        "give --for, such as --for 8.9",
    ),
    (re.compile(r"give a folder as cache"), "give a folder as --cache"),
)

_UNKNOWN_OPTION = re.compile(r"^sampler (?P<sampler>'\w+') takes (?P<known>[\w, ]+), got (?P<given>.*)$", re.DOTALL)
_HINTED = re.compile(r"(?<=\(here: )\w+|(?<=\(did you mean )\w+")
_SUBJECT = re.compile(r"^(\w+)(?=(?:\[\d+\])? (?:must|needs|has|have|is|takes|says|brings|cannot|with)\b)")
_TOGETHER = re.compile(r"^(\w+) and (\w+) go together: (\w+)(?= must)")
_ASSIGNED = re.compile(r"(?<![\w-])(\w+)='?(\w+)'?")
_TO_LEAVE_OUT = re.compile(r"(?<=leave out )\w+(?:(?:, | and )\w+)*")


def in_words_of(options: Mapping[str, str], message: str) -> str:
    """An error of the API in the words of a command.

    Args:
        options: The command's options by the names of their parameters: ``guidance_scale`` is ``--guidance-scale``.
        message: The error's message.
    """
    if message.startswith("--"):
        return message
    names = {**_ARGUMENTS, **options}
    for pattern, text in _WAYS_OUT:
        message = pattern.sub(text, message)
    if found := _UNKNOWN_OPTION.match(message):
        if found["given"] in options:
            return (
                f"{options[found['given']]} must be left out with sampler {found['sampler']}, which has no such option"
            )
        left = [name for name in found["known"].split(", ") if name not in options]
        shown = _HINTED.sub(lambda one: names.get(one[0], one[0]), found["given"])
        return f"--sampler-option of {found['sampler']} takes {', '.join(left)}, got {shown}"
    message = _TOGETHER.sub(lambda one: re.sub(r"\w+", lambda word: names.get(word[0], word[0]), one[0]), message)
    message = _SUBJECT.sub(lambda one: names.get(one[1], one[1]), message)
    message = _TO_LEAVE_OUT.sub(lambda all_: re.sub(r"\w+", lambda one: _option(names, one[0]), all_[0]), message)
    message = _ASSIGNED.sub(lambda one: _assigned(names, one), message)
    underscored = "|".join(name for name in names if "_" in name)
    return re.sub(rf"(?<![\w'\"/.-])(?<!option )(?:{underscored})(?![\w'\"/=.])", lambda one: names[one[0]], message)


#: How versions of typer say what a number must be: pydantic's words in the newer, click's in the older ones.
_NUMBER = re.compile(r"valid (number|float|integer)\b")
_LEAST = re.compile(r"(?:greater than or equal to |x>=)(-?[\d.]+)|(-?[\d.]+)<=x")
_MOST = re.compile(r"(?:less than or equal to |x<=)(-?[\d.]+)")


def number_rule(message: str) -> str:
    """The rule in typer's error about a number, such as ``must be at least 1``; empty in other errors."""
    if found := _NUMBER.search(message):
        return "must be a whole number" if found[1] == "integer" else "must be a number"
    low, high = _LEAST.search(message), _MOST.search(message)
    rules = [f"at least {(low[1] or low[2]).rstrip('.')}"] if low else []
    rules += [f"at most {high[1].rstrip('.')}"] if high else []
    return f"must be {' and '.join(rules)}" if rules else ""


def _option(names: Mapping[str, str], word: str) -> str:
    return word if word == "and" else names.get(word, word)


def _assigned(names: Mapping[str, str], found: re.Match[str]) -> str:
    """``karras=True`` as ``--karras``, ``refinements=0`` as it is where there is no such option."""
    name, value = found[1], found[2]
    if name not in names:
        return found[0]
    if value == "True":
        return names[name]
    if value == "False":
        return "--no-" + names[name].removeprefix("--")
    return f"{names[name]} {value}"
