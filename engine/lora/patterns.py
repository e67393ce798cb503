r"""Patterns of module names as PEFT writes them: regular expressions of untrusted files, matched in linear time.

PEFT matches ``(.*\.)?(PATTERN)$`` from the start of a module's name. Patterns are nearly always names or their ends;
more than that is taken as far as it needs no backtracking: single characters, ``.``, ``\d``, ``\w`` and classes, each
perhaps repeated by ``*``, ``+`` or ``?``, groups of alternatives that are not repeated, ``^`` and ``$``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_MAX_CHARACTERS = 1000  # of a pattern
_MAX_ALTERNATIVES = 64
_ATOM = re.compile(r"(\\[^A-Za-z0-9]|\\[dwDW]|\[\^?[\w\-. ]+\]|[^\\^$.|?*+()\[\]{}]|\.)([*+?]?)")
_GROUP = re.compile(r"(?<!\\)\((?:\?:)?((?:[^()\\]|\\.)*)\)(?![*+?{])")


@dataclass(frozen=True)
class _Part:
    """A character that a name has here: once, or as often as ``skips`` and ``repeats`` say."""

    character: re.Pattern[str]
    skips: bool
    repeats: bool


class NamePattern:
    """A pattern of module names.

    Args:
        text: As PEFT has it.

    Raises:
        ValueError: If it is no such expression as this module takes, or longer than 1,000 characters.
    """

    def __init__(self, text: str) -> None:
        if len(text) > _MAX_CHARACTERS:
            raise ValueError(f"it has {len(text)} characters, more than {_MAX_CHARACTERS}")
        self._alternatives = [_Alternative(one) for one in _expanded(text)]

    def matches(self, name: str) -> bool:
        """Whether PEFT finds the pattern at the end of a module's name."""
        return any(one.matches(name) for one in self._alternatives)


def _expanded(text: str) -> list[str]:
    """The alternatives of a pattern, its groups written out; not those of its top, which PEFT's own group holds."""
    found, waiting = [], _split(text)
    while waiting:
        one = waiting.pop()
        if (group := _GROUP.search(one)) is None:
            found.append(one)
        else:
            waiting += [one[: group.start()] + part + one[group.end() :] for part in _split(group[1])]
        if len(found) + len(waiting) > _MAX_ALTERNATIVES:
            raise ValueError(f"its groups stand for more than {_MAX_ALTERNATIVES} expressions")
    return found


def _split(text: str) -> list[str]:
    """The parts between bars that are in no group, class or escape."""
    parts, depth, at = [""], 0, 0
    while at < len(text):
        piece = text[at : at + 2] if text[at] == "\\" else text[at]
        depth += {"(": 1, "[": 1, ")": -1, "]": -1}.get(piece, 0)
        if piece == "|" and depth == 0:
            parts.append("")
        else:
            parts[-1] += piece
        at += len(piece)
    return parts


class _Alternative:
    """An expression without groups."""

    def __init__(self, text: str) -> None:
        self._anywhere = not text.startswith("^")  # it may begin behind any dot
        rest = text.removeprefix("^")
        rest = rest[:-1] if rest.endswith("$") and not rest.endswith("\\$") else rest
        self._parts, at = [], 0
        while at < len(rest):
            if (atom := _ATOM.match(rest, at)) is None:
                raise ValueError(f"at {rest[at:][:20]!r} it is none that is matched in linear time")
            self._parts.append(_Part(re.compile(atom[1]), atom[2] in ("*", "?"), atom[2] in ("*", "+")))
            at = atom.end()
        is_fixed = not any(part.skips or part.repeats for part in self._parts)
        self._fixed = re.compile(rest) if is_fixed else None

    def matches(self, name: str) -> bool:
        """Whether PEFT finds it at the end of a name."""
        if self._fixed is None:
            return _matches(self._parts, name, anywhere=self._anywhere)
        begin = len(name) - len(self._parts)  # without repeats it has one length: nearly every pattern has
        if begin and not (self._anywhere and begin > 0 and name[begin - 1] == "."):
            return False
        return self._fixed.fullmatch(name, begin) is not None


def _matches(parts: list[_Part], name: str, *, anywhere: bool) -> bool:
    """All ways to match at once: the set of parts that the name read so far may go on with."""
    begin = _with_skips({0}, parts)
    open_parts = set(begin)
    for character in name:
        following = set()
        for index in open_parts:
            if index < len(parts) and parts[index].character.fullmatch(character):
                following |= {index + 1, index} if parts[index].repeats else {index + 1}
        open_parts = _with_skips(following, parts)
        if anywhere and character == ".":
            open_parts |= begin
    return len(parts) in open_parts


def _with_skips(found: set[int], parts: list[_Part]) -> set[int]:
    for index in range(min(found, default=len(parts)), len(parts)):
        if index in found and parts[index].skips:
            found.add(index + 1)
    return found
