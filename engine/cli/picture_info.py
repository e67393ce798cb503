"""``stepfuse info PICTURE``: how a picture was drawn."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stepfuse.samplers.names import steps_asked
from stepfuse.samplers.table import StepTable

_MOST_SHOWN = 20  # timesteps


def picture_rows(path: Path) -> list[tuple[str, object]]:
    """What a picture says of how it was drawn, as rows of a name and a value.

    Raises:
        ValueError: If it does not say, or what it says cannot be read.
        OSError: If the file cannot be read.
    """
    from stepfuse.pipeline.saved_entries import read_entries

    entries = read_entries(path)
    width, height = entries.size
    rows: list[tuple[str, object]] = [("picture", f"{entries.format}, {width} x {height} pixels")]
    if entries.description:
        rows.append(("description", entries.description))
    if entries.provenance is not None:
        return [*rows, *_flat(json.loads(entries.provenance.to_json()))]
    if entries.webui:
        return [*rows, *entries.webui.items()]
    raise ValueError(f"{path} does not say how it was made: it has neither an entry of stepfuse nor parameters")


def picture_json(path: Path) -> dict[str, Any]:
    """The same as an object: ``stepfuse``, all that was recorded, or ``parameters``, a web interface's settings.

    Raises:
        ValueError: As ``picture_rows`` does.
        OSError: If the file cannot be read.
    """
    from stepfuse.pipeline.saved_entries import read_entries

    picture_rows(path)
    entries = read_entries(path)
    found: dict[str, Any] = {"format": entries.format, "size": list(entries.size), "description": entries.description}
    if entries.provenance is not None:
        found["stepfuse"] = json.loads(entries.provenance.to_json())
    if entries.webui:
        found["parameters"] = dict(entries.webui)
    return found


def table_rows(table: StepTable) -> list[tuple[str, object]]:
    """What a table's file says of it, as rows of a name and a value."""
    more = ["..."] if len(table) > _MOST_SHOWN else []
    kind = f"{len(table)} rows of {len(table.columns)} numbers, registers: {table.registers}, passes: {table.passes}"
    return [
        ("table", kind),
        ("sampler", table.sampler),
        *((name, _typed(value)) for name, value in table.options.items() if value is not None),
        ("timesteps", ", ".join([*(f"{t:.4g}" for t in table["t"][:_MOST_SHOWN]), *more])),
    ]


def _flat(made: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    """Entries of objects by their own names, and those that have no value left out."""
    for name, value in made.items():
        if name == "format" or value is None:
            continue
        if name == "steps":
            yield "steps", steps_asked(made["options"], value)
        elif name == "steps_done":
            yield "forwards done", value
        elif name == "model":
            yield "model", value["name"]
            yield from ((f"sha256 of {file}", digest) for file, digest in value["files"].items())
        elif name == "options":
            yield from ((one, _typed(given)) for one, given in value.items() if one not in made and given is not None)
        elif isinstance(value, dict) and "sha256" in value:
            yield f"sha256 of {name}", f"{value['sha256']}, shape {_typed(value['shape'])}"
        elif name in ("cond", "negative_cond"):
            yield name, ", ".join("unconditional" if one is None else _typed(one) for one in value)
        else:
            yield name, _typed(value)


def _typed(value: object) -> str:
    """A value as options are typed: ``true``, ``0.2, 0.8``; an object as its names and values."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return ", ".join(map(_typed, value))
    if isinstance(value, dict):
        return ", ".join(f"{name} {_typed(one)}" for name, one in value.items())
    return "none" if value is None else str(value)
