"""The ``parameters`` text of a picture: the prompts, then a line of settings, as Stable Diffusion's web interfaces do.

Its form is that of AUTOMATIC1111's stable-diffusion-webui, which others read too: a value with a comma, a colon or a
line break is a JSON text in quotes. In prompts brackets are emphasis there, unless a backslash stands before them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from stepfuse.display import brief, listed, shortened
from stepfuse.pipeline.provenance import Provenance
from stepfuse.samplers.names import steps_asked

#: What the web interfaces call the samplers.
WEBUI_NAMES = {
    "ddim": "DDIM",
    "ddpm": "DDPM",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_sde": "DPM++ 2M SDE",
    "dpmpp_3m_sde": "DPM++ 3M SDE",
    "dpmpp_sde": "DPM++ SDE",
    "euler": "Euler",
    "euler_ancestral": "Euler a",
    "heun": "Heun",
    "lcm": "LCM",
    "lms": "LMS",
    "ipndm": "IPNDM",
    "dpmpp_2s": "DPM++ 2S",
    "kdpm2": "DPM2",
    "kdpm2_ancestral": "DPM2 a",
    "plms": "PLMS",
    "unipc": "UniPC",
    "tcd": "TCD",
}
_LEVELS = {"karras": "Karras", "exponential": "Exponential", "beta": "Beta"}
#: What they call the levels that each sampler has by itself, and those of the model's own schedule.
AUTOMATIC, UNIFORM = "Automatic", "Uniform"
#: What the first is where it is not the second, from their version 1.9 on (``modules/sd_samplers_kdiffusion.py``).
_OWN_LEVELS = {
    **dict.fromkeys(("dpmpp_2m", "dpmpp_sde", "kdpm2", "kdpm2_ancestral"), "Karras"),
    **dict.fromkeys(("dpmpp_2m_sde", "dpmpp_3m_sde"), "Exponential"),
}
_CFG_PP = " CFG++"
_SETTING = re.compile(r'([\w.+-][\w .+-]{0,99}):\s*("(?:\\.|[^\\"])*"|[^,]*)(?:,|$)')
#: Settings that say nothing more, or that are read.
_READ = {"Prompt", "Negative prompt", "Steps", "Sampler", "Schedule type", "CFG scale", "Seed", "Size"}
_READ |= {"Model", "Model hash", "Version", "Lora hashes", "TI hashes", "Hashes"}
_LORA = re.compile(r"<lora:([^:<>]+)(?::([^:<>]*))?>")
#: Brackets within which there are none of their kind, and how one ends that has a weight, as in ``(fog:1.3)``, or a
#: step, as in ``[fog:rain:0.5]``.
_BRACKETS = re.compile(r"\(([^()]*)\)|\[([^][]*)\]")
_NUMBER = re.compile(r":\s*[-+]?[\d.]+\s*$")
_ESCAPED = re.compile(r"\\([()[\]\\])")
_NEGATIVE = "Negative prompt:"
_FEWEST = 3  # settings that make a line one of settings, as the web interfaces count


def webui_text(made: Provenance) -> str:
    """The text of a picture that was drawn of a prompt."""
    options = made.options
    levels = "karras" if options.get("karras") else options.get("levels", "schedule")
    settings = {
        "Steps": steps_asked(options, made.steps),
        "Sampler": WEBUI_NAMES.get(made.sampler, made.sampler) + (_CFG_PP if options.get("cfg_pp") else ""),
        "Schedule type": UNIFORM if levels == "schedule" and made.sampler in _OWN_LEVELS else _LEVELS.get(levels),
        "CFG scale": f"{options.get('guidance_scale', 1.0):g}",
        "Seed": made.seed,
        "Size": f"{made.width}x{made.height}",
        "Model hash": made.model.weights[:10] or None,
        "Model": made.model.name,
        "Denoising strength": None if made.strength is None else f"{made.strength:g}",
        "Eta": f"{options['eta']:g}" if options.get("eta") else None,
        "Version": f"stepfuse {made.version}",
    }
    line = ", ".join(f"{name}: {_quoted(str(value))}" for name, value in settings.items() if value is not None)
    negative = [f"{_NEGATIVE} {_escaped(made.negative_prompt)}"] if made.negative_prompt else []
    return "\n".join([_escaped(made.prompt or ""), *negative, line])


def read_webui_text(text: str) -> dict[str, str]:
    """The settings by name, with ``Prompt`` and ``Negative prompt``, of a text of unknown origin.

    Prompts may hold anything: a line of one that looks like the line of settings, or begins with ``Negative prompt:``,
    is taken for it.
    """
    *lines, last = text.strip().split("\n")
    settings = dict(_SETTING.findall(last))
    if len(settings) < _FEWEST:
        lines, settings = [*lines, last], {}
    start = next((index for index, line in enumerate(lines) if line.startswith(_NEGATIVE)), len(lines))
    found = {"Prompt": "\n".join(lines[:start])}
    if start < len(lines):
        found["Negative prompt"] = "\n".join(lines[start:]).removeprefix(_NEGATIVE).strip()
    return {**found, **{name: _unquoted(value) for name, value in settings.items()}}


def prompt_loras(prompt: str) -> tuple[str, dict[str, float]]:
    """A prompt without ``<lora:NAME:SCALE>``, and the scales by name, 1 where there is none.

    Raises:
        ValueError: If a scale is no number.
    """
    scales = {}
    for name, scale in _LORA.findall(prompt):
        try:
            scales[name] = float(scale or 1.0)
        except ValueError as error:
            rule = "prompt must name LoRAs as <lora:NAME:SCALE>"
            raise ValueError(f"{rule}, got {brief(f'<lora:{name}:{scale}>')}") from error
    return _LORA.sub("", prompt).strip() if scales else prompt, scales


def plain_prompt(name: str, prompt: str) -> str:
    r"""A prompt with its escaped brackets, ``\(``, as they are meant.

    Args:
        name: Of the argument, for messages.
        prompt: As the web interfaces have it.

    Raises:
        ValueError: If words have a weight, or change as the picture is drawn.
    """
    for found in _BRACKETS.finditer(_ESCAPED.sub("..", prompt)):
        if _NUMBER.search(found[1] or found[2] or "") or "|" in (found[2] or ""):
            rule = f"{name} must have words without weights and editing, which are not here"
            how = "escape brackets that are text as \\( and \\)"
            raise ValueError(f"{rule}, got {brief(prompt[slice(*found.span())])}: {how}")
    return _ESCAPED.sub(r"\1", prompt)


def has_brackets(prompt: str) -> bool:
    """Whether some are not escaped: emphasis in the web interfaces, and text here."""
    return bool(set("()[]") & set(_ESCAPED.sub("", _LORA.sub("", prompt))))


def unread_settings(settings: Mapping[str, str]) -> str:
    """Those of a text that may change the picture and are not here, as a list in words; empty if there are none."""
    unread = [name for name in settings if name not in _READ]
    if (levels := settings.get("Schedule type", "")) not in ("", AUTOMATIC, UNIFORM, *_LEVELS.values()):
        unread.append(f"Schedule type: {levels}")
    return shortened(listed(unread))


def sampler_of(settings: Mapping[str, str]) -> tuple[str | None, dict[str, bool | str]]:
    """Our sampler of a text's settings, None if there is none, and its options.

    Noise levels are a setting of their own, where ``Automatic`` leaves them to the sampler, or in older texts the last
    word of the sampler's name.
    """
    name, levels = settings.get("Sampler", ""), settings.get("Schedule type", "")
    for theirs in _LEVELS.values():
        if name.endswith(f" {theirs}"):
            name, levels = name.removesuffix(f" {theirs}"), theirs
    cfg_pp = name.endswith(_CFG_PP)
    ours = {theirs.lower(): mine for mine, theirs in WEBUI_NAMES.items()}
    sampler = ours.get(name.removesuffix(_CFG_PP).lower())
    if levels == AUTOMATIC and sampler is not None:
        levels = _OWN_LEVELS.get(sampler, UNIFORM)
    kind = next((mine for mine, theirs in _LEVELS.items() if theirs == levels), None)
    options: dict[str, bool | str] = {"karras": True} if kind == "karras" else {"levels": kind} if kind else {}
    if cfg_pp:
        options["cfg_pp"] = True
    return sampler, options


def _escaped(prompt: str) -> str:
    return re.sub(r"([()[\]\\])", r"\\\1", prompt)


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if re.search(r'[,:\n"]', value) else value


def _unquoted(value: str) -> str:
    if not (len(value) > 1 and value[0] == value[-1] == '"'):
        return value.strip()
    try:
        return str(json.loads(value))
    except ValueError:
        return value
