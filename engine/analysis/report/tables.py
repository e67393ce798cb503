"""Results as files: rows as CSV and Markdown, plain fields as JSON values; files are written atomically."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stepfuse.analysis.experiments.wording import short
from stepfuse.display import printable
from stepfuse.files.atomic import write_atomically

#: What begins a formula in a spreadsheet (OWASP, "CSV Injection"), in either width.
_FORMULA = tuple("=+-@\uff1d\uff0b\uff0d\uff20")
#: What Markdown, or GitHub's, would read: underscores inside of a word are none of it.
_MARKS = re.compile(r"[\\`*\[\]|~$]|(?<!\w)_|_(?!\w)|^#")


def rows_of(result: Any) -> dict[str, list[dict[str, Any]]]:
    """Fields of a result that hold rows (a tuple of dataclasses), by name, each row as a dict."""
    found = {one.name: getattr(result, one.name) for one in fields(result)}
    return {
        name: [{column.name: plain(getattr(row, column.name)) for column in fields(row)} for row in value]
        for name, value in found.items()
        if isinstance(value, tuple) and value and all(is_dataclass(row) for row in value)
    }


def settings_of(result: Any) -> dict[str, Any]:
    """Its other fields that are numbers, texts or sequences of them, not arrays of pictures or states."""
    found = {one.name: getattr(result, one.name) for one in fields(result)}
    return {name: plain(value) for name, value in found.items() if name not in rows_of(result) and _is_plain(value)}


def plain(value: Any) -> Any:
    """A value as JSON has it: numpy's numbers as Python's, tuples as lists, numbers that are not finite as None."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return [plain(one) for one in value] if isinstance(value, tuple | list) else value


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as CSV: a header, then a line for each row; None is an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    return text.getvalue()


def as_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as a Markdown table with three digits, without the columns in which every cell is empty."""
    columns = [name for name in rows[0] if any(row[name] not in (None, "") for row in rows)]
    lines = [[name.replace("_", " ") for name in columns], ["---"] * len(columns)]
    lines += [[_short(row[name]) for name in columns] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def markdown(given: object) -> str:
    """A text that Markdown shows as it is: no HTML, no links, no formulas, on one line."""
    text = printable(given)
    for mark, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        text = text.replace(mark, entity)
    return _MARKS.sub(r"\\\g<0>", text)


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically; a lone surrogate is written as JSON escapes it."""
    write_atomically(path, lambda scratch: scratch.write_text(text, encoding="utf-8", errors="backslashreplace"))


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(_is_plain(one) for one in value)
    return value is None or isinstance(value, str | bool | int | float | np.generic)


def _cell(value: Any) -> Any:
    """A cell of CSV: a text that a spreadsheet would take for a formula begins with an apostrophe."""
    if isinstance(value, list):
        return " to ".join(str(_cell(one)) for one in value)
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text.startswith(_FORMULA) else text


def _short(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return " to ".join(_short(one) for one in value)
    if isinstance(value, float):
        return short(value)
    return markdown(value)
