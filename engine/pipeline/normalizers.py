"""How long a text may become under a tokenizer's normalizer, before that is applied to it."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

#: Most characters of a prompt as the file's normalizer writes it: each of a chain of them may double it.
MAX_NORMALIZED = 1 << 20
MAX_NORMALIZERS = 1000

#: Most characters that a normalizer makes of one: decompositions of Unicode (its stability policy bounds them), lower
#: case, spaces around ideographs, a letter a byte.
_GROWTH = {"NFC": 3, "NFD": 4, "NFKC": 18, "NFKD": 18, "Lowercase": 3, "BertNormalizer": 12, "ByteLevel": 4}

#: An expression for one text alone, or one that no number follows, as exports write for textual inversions.
_LITERAL = re.compile(r"(?:\\[^A-Za-z0-9]|[^\\^$.|?*+()\[\]{}])+(?:\(\?!_\\d\))?")


def normalized_length(normalizer: Any) -> Callable[[str], float]:
    """A bound on the characters that a tokenizer's normalizer makes of a text.

    Literal replacements, such as those of textual inversions, are made here too, as long as nothing else comes before
    them: they are often many, and most find nothing. What is behind others is bounded by what it may do to any text.

    Args:
        normalizer: The entry of its file, None for none.

    Returns:
        From a text to the bound; beyond ``MAX_NORMALIZED`` it is no longer exact.

    Raises:
        ValueError: If there are more than ``MAX_NORMALIZERS``.
    """
    steps = [_step(one) for one in _flat(normalizer)]
    if len(steps) > MAX_NORMALIZERS:
        raise ValueError(f"it must have at most {MAX_NORMALIZERS} normalizers, got {len(steps)}")

    def bound(text: str) -> float:
        known: str | None = text
        length = float(len(text))
        for step in steps:
            if known is None or step.literal is None:
                known, length = None, step.bound(length)
                continue
            length = len(known) + len(step.literal.findall(known)) * float(len(step.content))
            if length > MAX_NORMALIZED:
                known = None
            else:
                known = step.content.join(step.literal.split(known))
                length = len(known)
        return length

    return bound


@dataclass(frozen=True)
class _Step:
    """One normalizer.

    Attributes:
        bound: Most characters of its result, by those of the text.
        literal: What it replaces, if that is a literal text.
        content: What by.
    """

    bound: Callable[[float], float]
    literal: re.Pattern[str] | None = None
    content: str = ""


def _flat(normalizer: Any) -> list[Mapping[str, Any]]:
    """The normalizers in their order, sequences dissolved."""
    if not normalizer:
        return []
    if normalizer.get("type") == "Sequence":
        return [one for part in normalizer["normalizers"] for one in _flat(part)]
    return [normalizer]


def _step(normalizer: Mapping[str, Any]) -> _Step:
    kind = normalizer.get("type")
    if kind == "Prepend":
        added = len(normalizer["prepend"])
        return _Step(lambda length: length + added)
    if kind != "Replace":
        growth = _longest_entry(normalizer) if kind == "Precompiled" else _GROWTH.get(str(kind), 1)
        return _Step(lambda length: length * growth)
    content: str = normalizer["content"]
    pattern: str = normalizer["pattern"].get("Regex") or re.escape(normalizer["pattern"].get("String", ""))
    least = _least_width(pattern)
    if least == 0:
        return _Step(lambda length: length + (length + 1) * len(content))
    literal = re.compile(pattern) if _LITERAL.fullmatch(pattern) else None
    return _Step(lambda length: length * max(1.0, len(content) / least), literal, content)


def _least_width(pattern: str) -> int:
    """Characters that a match has at least; 0 where Python reads the expression differently or not at all."""
    if re.search(r"\[[^\]]*\[", pattern):  # a class in a class, which Python does not have
        return 0
    parser: Any = getattr(re, "_parser", None) or re.sre_parse  # type: ignore[attr-defined]
    try:
        return int(parser.parse(pattern).getwidth()[0])
    except Exception:  # of the library's own syntax
        return 0


def _longest_entry(normalizer: Mapping[str, Any]) -> int:
    """The longest text that SentencePiece's compiled map puts in the place of a character.

    The map is the size of its trie, the trie, and the texts, each ended by a zero.
    """
    data = base64.b64decode(normalizer["precompiled_charsmap"] or "")
    texts = data[4 + int.from_bytes(data[:4], "little") :]
    return max([len(one.decode(errors="replace")) for one in texts.split(b"\0")], default=1) or 1
