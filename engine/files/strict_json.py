"""JSON of unknown origin: a value, or a ValueError that says what is wrong with the text."""

from __future__ import annotations

import json
from typing import Any

from stepfuse.display import brief


def parse_json(data: bytes) -> Any:
    """The value that a JSON text stands for.

    Args:
        data: UTF-8. Bound its size before: the value takes up to thirty times as much memory.

    Raises:
        ValueError: If it is no JSON, nests too deeply, names a key twice, or has half of a surrogate pair, which no
            file or terminal takes.
    """
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_without_duplicates)
        if b"\\u" in data:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError as error:
        raise ValueError(str(error)) from error
    return value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"a key must be there once, got {brief(next(one for one in names if names.count(one) > 1))}")
    return found
