"""Results as files: rows as CSV and Markdown, everything but pictures as JSON; each file whole or not at all."""

from __future__ import annotations

import csv
import io
import math
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np


def rows_of(result: Any) -> dict[str, list[dict[str, Any]]]:
    """Every field of a result that holds rows (a tuple of dataclasses), by its name, each row a dict."""
    found = {one.name: getattr(result, one.name) for one in fields(result)}
    return {
        name: [{column.name: plain(getattr(row, column.name)) for column in fields(row)} for row in value]
        for name, value in found.items()
        if isinstance(value, tuple) and value and all(is_dataclass(row) for row in value)
    }


def settings_of(result: Any) -> dict[str, Any]:
    """Every other field that is a number, a text, or a few of these: no pictures, no states."""
    found = {one.name: getattr(result, one.name) for one in fields(result)}
    return {name: plain(value) for name, value in found.items() if name not in rows_of(result) and _is_plain(value)}


def plain(value: Any) -> Any:
    """As JSON holds it: numpy's numbers as Python's, tuples as lists, what is not finite as None."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return [plain(one) for one in value] if isinstance(value, tuple | list) else value


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """A header and a line a row; None is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _joined(value) for name, value in row.items()} for row in rows)
    return text.getvalue()


def as_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The same with three digits, without the columns that are empty throughout."""
    columns = [name for name in rows[0] if any(row[name] not in (None, "") for row in rows)]
    lines = [[name.replace("_", " ") for name in columns], ["---"] * len(columns)]
    lines += [[_short(row[name]) for name in columns] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Has ``write`` make a file beside ``path`` and puts it in place: a run that is stopped leaves what was there."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    scratch = Path(name)
    try:
        write(scratch)
        scratch.chmod(0o644)  # mkstemp's own mode would lock other users out
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file, whole or not at all."""
    write_whole(path, lambda scratch: scratch.write_text(text, encoding="utf-8"))


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(_is_plain(one) for one in value)
    return value is None or isinstance(value, str | bool | int | float | np.generic)


def _joined(value: Any) -> Any:
    return " to ".join(str(one) for one in value) if isinstance(value, list) else value


def _short(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return " to ".join(_short(one) for one in value)
    if isinstance(value, float):
        return f"{value:.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"
    return str(value).replace("|", "\\|")
