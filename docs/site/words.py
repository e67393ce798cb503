"""Spelling of the glossary's words: the third column of ``docs/glossary.md`` lists what prose must not say instead."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

GLOSSARY = Path(__file__).parents[1] / "glossary.md"
#: Pages that quote other spellings: the glossary itself, and what earlier versions said of themselves.
QUOTING = ("glossary.md", "CHANGELOG.md")

_CODE = re.compile(r"^```.*?^```|^(?: {4}|\t).*?$|``.*?``|`[^`\n]*`|\]\([^)]*\)", re.MULTILINE | re.DOTALL)


def misspelt(markdown: str) -> list[str]:
    """Spellings of the text that the glossary refuses, with what it has instead; code is left out."""
    text = _CODE.sub(lambda match: "\n" * match[0].count("\n"), markdown)
    return [
        f"line {text[: found.start()].count(chr(10)) + 1}: {found[0]!r} should be {right!r}"
        for right, wrong in refused()
        for found in re.finditer(rf"\b{re.escape(wrong)}\b", text, re.IGNORECASE)
    ]


def refused() -> Iterator[tuple[str, str]]:
    """Pairs of a word and another spelling of it, from the glossary's table."""
    for line in GLOSSARY.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| ") and len(cells) == 3 and cells[0] != "word":
            yield from ((cells[0], wrong.strip()) for wrong in cells[2].split(",") if wrong.strip())
