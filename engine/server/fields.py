"""Fields of a request for a picture, as the service and batches of requests read them alike."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from stepfuse.display import brief

#: What ``sampler_options`` must not hold, and the field that says it.
_FIELDS = {"steps": "num_inference_steps", **{name: name for name in ("sampler", "guidance_scale", "eta")}}

_SIZE = re.compile(r"([1-9]\d{0,5})x([1-9]\d{0,5})")


def size_of(text: str | None) -> tuple[int | None, int | None]:
    """Width and height of ``WIDTHxHEIGHT``; of None and ``auto`` None, which is the model's own.

    Raises:
        ValueError: If the text is none of that.
    """
    if text in (None, "auto"):
        return None, None
    if (found := _SIZE.fullmatch(text)) is None:
        raise ValueError(f"size must be WIDTHxHEIGHT in pixels, or auto, got {text!r:.80}")
    return int(found[1]), int(found[2])


def require_options_alone(options: Mapping[str, Any]) -> None:
    """Refuses ``sampler_options`` that hold what is a field of its own.

    Raises:
        ValueError: If they do.
    """
    for name in options:
        if name in _FIELDS:
            rule = f"sampler_options must not hold {name}, which is a field of its own: {_FIELDS[name]}"
            raise ValueError(f"{rule}, got {brief(options[name])}")
