"""Text that others chose, made safe to show: names of a bundle, request ids, prompts, texts of foreign errors.

Raw, they may move a terminal's cursor, forge a line of a log, turn the order of what follows, or not be encodable at
all. What is shown anywhere passes ``printable``; escaping for one medium (rich, Markdown, CSV, figures) comes after it.
"""

from __future__ import annotations

import reprlib
import unicodedata
from collections.abc import Iterable

#: Categories that are escaped: controls (C0, C1, DEL: ANSI sequences begin with one), formats (bidirectional overrides,
#: zero-width characters), lone surrogates, line and paragraph separators.
_ESCAPED = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})

NAME = 200  # most characters of a name that is shown
MESSAGE = 2000  # and of an error's message

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


def shortened(text: str) -> str:
    """A message that quotes texts of unknown size, at most ``MESSAGE`` characters of it."""
    return text if len(text) <= MESSAGE else f"{text[: MESSAGE // 2]} ... {text[-MESSAGE // 4 :]}"


def encodable(text: str) -> str:
    """A text that UTF-8 can hold, for files that keep it as it is: lone surrogates are escaped, nothing else."""
    return text.encode("utf-8", "backslashreplace").decode()


def _escaped(one: str) -> str:
    return one.encode("unicode_escape").decode("ascii")
