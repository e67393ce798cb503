"""Options of samplers as they are typed: NAME=VALUE, numbers with commas between."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_OWN = ("sampler", "steps", "guidance_scale", "eta", "seed")
_WORDS = {"true": True, "false": False, "none": None}


def merged(named: Mapping[str, Any], texts: Sequence[str] | None) -> dict[str, Any]:
    """Options that have an option of their own, and those of ``--sampler-option``.

    Raises:
        ValueError: If a text is not NAME=VALUE, or an option comes twice.
    """
    options = parse_sampler_options(texts)
    for name in named:
        if name in options:
            raise ValueError(f"{name} must be given once, got --{name.replace('_', '-')} and --sampler-option {name}")
    return {**options, **named}


def parse_sampler_options(texts: Sequence[str] | None) -> dict[str, Any]:
    """Options of ``--sampler-option`` by name: numbers, true, false, none, other words, or several with commas between.

    Raises:
        ValueError: If one is not NAME=VALUE, a name comes twice or always has an option of its own.
    """
    options: dict[str, Any] = {}
    for text in texts or ():
        name, given, value = text.partition("=")
        name = name.strip().replace("-", "_")
        if not (given and name and value.strip()):
            raise ValueError(f"--sampler-option must be NAME=VALUE such as karras=true, got {text!r}")
        if name in _OWN:
            raise ValueError(f"--sampler-option {name} has an option of its own: give --{name.replace('_', '-')}")
        if name in options:
            raise ValueError(f"--sampler-option {name} must be given once, got {text!r} too")
        values = [_parse_value(part) for part in value.split(",") if part.strip()]
        options[name] = tuple(values) if "," in value else values[0]
    return options


def numbers(option: str, text: str, count: int) -> tuple[float, ...]:
    """Numbers with commas between.

    Raises:
        ValueError: If they are not ``count`` numbers.
    """
    values = [_parse_value(part) for part in text.split(",")]
    if len(values) != count or any(isinstance(one, bool) or not isinstance(one, int | float) for one in values):
        raise ValueError(f"{option} must be {count} numbers with commas between, got {text!r}")
    return tuple(values)


def _parse_value(text: str) -> Any:
    word = text.strip()
    if word.lower() in _WORDS:
        return _WORDS[word.lower()]
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            continue
    return word
