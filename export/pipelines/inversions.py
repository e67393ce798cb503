"""Textual inversions of several vectors (Gal et al., 2022), in a tokenizer's file.

diffusers keeps such an embedding as the tokens ``<toy>``, ``<toy>_1``, ``<toy>_2``, and its pipelines write all of them
for ``<toy>`` in a prompt before they tokenize it. Here the tokenizer does that itself, so that a bundle needs no more
than its file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence

from stepfuse.errors import ExportError


def textual_inversions(added: Collection[str]) -> dict[str, list[str]]:
    """The tokens of each embedding of several vectors, by the token that stands for it in a prompt.

    Args:
        added: The tokenizer's added tokens.
    """
    found = {}
    for token in sorted(added, key=len, reverse=True):
        vectors = [token]
        while (following := f"{token}_{len(vectors)}") in added:
            vectors.append(following)
        if len(vectors) > 1:
            found[token] = vectors
    return found


def with_inversions(tokenizer: str, inversions: Mapping[str, Sequence[str]]) -> str:
    """A tokenizer's file that reads each of these tokens as all of its vectors.

    The first vector is renamed, since a normalizer, which replaces the token, is also applied to the tokens themselves.

    Args:
        tokenizer: The file.
        inversions: As of ``textual_inversions``.

    Raises:
        ExportError: If the first vector's new name is taken.
    """
    if not inversions:
        return tokenizer
    content = json.loads(tokenizer)
    added = {entry["content"]: entry for entry in content["added_tokens"]}
    replacements = []
    for token, vectors in inversions.items():
        first = f"{token}_0"
        if first in added:
            raise ExportError(f"the tokenizer must not have a token {first!r} beside {', '.join(map(repr, vectors))}")
        added[token].update(content=first, normalized=True)
        replacements.append(
            {
                "type": "Replace",
                "pattern": {"Regex": rf"{re.escape(token)}(?!_\d)"},
                "content": " ".join((first, *vectors[1:])),
            }
        )
    own = [content["normalizer"]] if content["normalizer"] else []
    content["normalizer"] = {"type": "Sequence", "normalizers": [*replacements, *own]}
    return json.dumps(content, ensure_ascii=False)
