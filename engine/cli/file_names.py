"""Names of the files of a run: a pattern such as ``out/{index:04}-{seed}.png``."""

from __future__ import annotations

import re
import unicodedata
from string import Formatter
from typing import Any

from stepfuse.display import did_you_mean

#: What a pattern may name.
FIELDS = ("index", "seed", "prompt", "cond", "model")
_LONGEST = 80  # bytes of a prompt in a name: a file system takes 255 of the whole
_UNSAFE = re.compile(r"[^\w.+-]+")


def is_pattern(output: str) -> bool:
    """Whether a name has fields in braces."""
    return "{" in output or "}" in output


def check_pattern(pattern: str) -> None:
    """Refuses a pattern that names what there is not.

    Raises:
        ValueError: If a brace is not closed, a field is none of ``FIELDS``, or its format is none of its kind.
    """
    try:
        parts = list(Formatter().parse(pattern))
        for _, field, _, conversion in parts:
            if field is None:
                continue
            if field not in FIELDS or conversion:
                fields = ", ".join(f"{{{name}}}" for name in FIELDS)
                raise ValueError(f"its fields are {fields}, not {{{field}}}{did_you_mean(field, FIELDS)}")
        file_name(pattern, index=0, seed=0, prompt="a", cond="a", model="a")
    except ValueError as error:
        raise ValueError(f"--output must be a name or a pattern of one, got {pattern!r}: {error}") from error


def file_name(pattern: str, **fields: Any) -> str:
    """A pattern with its fields filled in, texts made safe for file systems."""
    empty = dict.fromkeys(FIELDS, "none")
    safe = {name: one if isinstance(one, int) else safe_name(str(one)) for name, one in fields.items()}
    return pattern.format_map({**empty, **safe})


def safe_name(text: str) -> str:
    """A text as part of a file's name: letters and digits of any script and ``+-._``, at most 80 bytes."""
    plain = _UNSAFE.sub("-", unicodedata.normalize("NFKC", text)).strip("-._")
    short = plain.encode()[:_LONGEST].decode(errors="ignore").strip("-._")
    return short or "none"
