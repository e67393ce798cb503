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
        fields = [(name, form, as_) for _, name, form, as_ in Formatter().parse(pattern) if name is not None]
    except ValueError as error:
        raise ValueError(f"--output must close its braces, got {pattern!r}: a brace itself is {{{{ or }}}}") from error
    for name, form, conversion in fields:
        if name not in FIELDS:
            known = ", ".join(f"{{{one}}}" for one in FIELDS)
            raise ValueError(f"--output must have fields of {known} alone, got {{{name}}}{did_you_mean(name, FIELDS)}")
        try:
            if conversion:
                raise ValueError
            format(0 if name in ("index", "seed") else "a", form or "")
        except ValueError as error:
            raise ValueError(f"--output must format {{{name}}} such as {{index:04}}, got {pattern!r}") from error


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
