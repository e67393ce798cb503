"""Text that others chose, made safe to show: names of a bundle, request ids, prompts, texts of foreign errors.

Raw, they may move a terminal's cursor, forge a line of a log, turn the order of what follows, or not be encodable at
all. What is shown anywhere passes ``printable``; escaping for one medium (rich, Markdown, CSV, figures) comes after it.
"""

from __future__ import annotations

import reprlib
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from typing import Any

#: Categories that are escaped: controls (C0, C1, DEL: ANSI sequences begin with one), formats (bidirectional overrides,
#: zero-width characters), lone surrogates, line and paragraph separators.
_ESCAPED = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})

NAME = 200  # most characters of a name that is shown
MESSAGE = 2000  # and of an error's message

_FEW = 8  # values or entries that a repr shows
_UNITS = ("kB", "MB", "GB", "TB", "PB", "EB")  # powers of 1000

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = NAME
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = 12


def printable(given: object, limit: int | None = None) -> str:
    r"""A text on one line, with Python's escapes (``\n``, ``\x1b``, ``\u202e``) for what acts on a terminal.

    Args:
        given: A text, or what ``str`` makes one of.
        limit: Most characters taken of it; what is longer ends in an ellipsis. None takes all.
    """
    text = str(given)
    if limit is not None and len(text) > limit:
        text = text[: limit - 1] + "…"
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escaped(one) if unicodedata.category(one) in _ESCAPED else one for one in text)


def listed(names: Iterable[object]) -> str:
    """Names as an error or a line shows several: each ``printable``, at most ``NAME`` characters of it."""
    return ", ".join(printable(name, NAME) for name in names)


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """Words behind an error that refuses a name: the one of ``known`` that it looks like; empty where none does."""
    from difflib import get_close_matches  # takes a while, and needed where something is wrong alone

    plain = {name.lower(): name for name in known}
    close = get_close_matches(given.lower(), plain, 1)
    return f" (did you mean {printable(plain[close[0]], NAME)}?)" if close else ""


def brief(value: object) -> str:
    """``repr`` of a value of unknown size and depth: long texts, lists and nested ones are cut."""
    return _SHORT.repr(value)


def one_line(value: Any) -> str:
    """``repr`` of a dataclass as a notebook shows it: what differs from the defaults, arrays as dtype and shape.

    Meant to be its ``__repr__``; fields with ``repr=False`` are left out.
    """
    shown = []
    for one in fields(value):
        given = getattr(value, one.name)
        default = one.default_factory() if one.default_factory is not MISSING else one.default
        if one.repr and not (given is default or (_is_plain(given) and given == default)):
            shown.append(f"{one.name}={_outline(given)}")
    return f"{type(value).__name__}({', '.join(shown)})"


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int | float | dict | tuple)


def _outline(value: Any) -> str:
    shape = getattr(value, "shape", None)
    if shape and hasattr(value, "dtype"):
        return f"<{value.dtype} {tuple(shape)}>"
    if isinstance(value, Mapping):
        if len(value) > _FEW:
            return f"<{len(value)} entries>"
        return f"{{{', '.join(f'{brief(name)}: {_outline(one)}' for name, one in value.items())}}}"
    if isinstance(value, list | tuple):
        if len(value) > _FEW:
            return f"<{len(value)} values>"
        inside = ", ".join(map(_outline, value))
        return f"[{inside}]" if isinstance(value, list) else f"({inside}{',' if len(value) == 1 else ''})"
    return brief(value) if isinstance(value, str) else printable(repr(value), MESSAGE)


def shortened(text: str) -> str:
    """A message that quotes texts of unknown size, at most ``MESSAGE`` characters of it."""
    return text if len(text) <= MESSAGE else f"{text[: MESSAGE // 2]} ... {text[-MESSAGE // 4 :]}"


def byte_size(count: int) -> str:
    """A number of bytes in the unit that fits, to three digits: ``12 bytes``, ``13.2 kB``, ``4 MB``, ``1.06 TB``."""
    if count < 1000:
        return f"{count} byte{'' if count == 1 else 's'}"
    for power, unit in enumerate(_UNITS, start=1):
        if count < 1000 ** (power + 1):
            shown = f"{count / 1000**power:.3g}"
            if float(shown) < 1000:  # 999,999 is 1 MB, not 1000 kB
                return f"{shown} {unit}"
    return f"over 999 {_UNITS[-1]}"


def encodable(text: str) -> str:
    """A text that UTF-8 can hold, for files that keep it as it is: lone surrogates are escaped, nothing else."""
    return text.encode("utf-8", "backslashreplace").decode()


def _escaped(one: str) -> str:
    return one.encode("unicode_escape").decode("ascii")
