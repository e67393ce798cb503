"""A row of a table as the request for a picture that it is, in the words of the HTTP service."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from stepfuse.display import brief, did_you_mean, listed
from stepfuse.files.strict_json import parse_json
from stepfuse.requests.prompt_request import PromptRequest
from stepfuse.server.fields import require_options_alone, size_of


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        number: Its place in the table, from 0.
        fields: Its values by column; None and NaN are what is left out.
        error: Why it cannot be read; None where it can.
    """

    number: int
    fields: Mapping[str, Any]
    error: str | None = None

    @property
    def id(self) -> str:
        """Its column ``id``, or its number where it has none."""
        given = present(self.fields.get("id"))
        return str(self.number if given is None else given)


def seed_of(id: str) -> int:
    """The seed of a row that has none: 53 bits of the SHA-256 of its id, the same number in every reader's JSON."""
    return int.from_bytes(hashlib.sha256(id.encode("utf-8", "surrogatepass")).digest()[:8], "big") >> 11


def request_of(row: Row, keep: Collection[str] = ()) -> PromptRequest:
    """The request of a row, with a seed.

    Args:
        row: The row.
        keep: Columns that no request has, which its record keeps.

    Raises:
        ValueError: If the row cannot be read, has a column that is neither a request's nor kept, or a value that is
            none of its column.
    """
    if row.error is not None:
        raise ValueError(row.error)
    asked: dict[str, Any] = {}
    for name, value in row.fields.items():
        if name in keep:
            continue
        if name not in COLUMNS:
            rule = f"{brief(name)} is no column of requests{did_you_mean(str(name), COLUMNS)}: they are"
            raise ValueError(f"{rule} {listed(COLUMNS)}; keep names columns that only their records have")
        if present(value) is not None:
            asked[name] = COLUMNS[name](name, value)
    if "steps" in asked and "num_inference_steps" in asked:
        raise ValueError(f"steps and num_inference_steps are one: give one of them, got {asked['steps']}")
    width, height = size_of(asked.get("size"))
    options = asked.get("sampler_options", {})
    require_options_alone(options)
    return PromptRequest(
        asked.get("prompt"),
        negative_prompt=asked.get("negative_prompt"),
        width=width,
        height=height,
        sampler=asked.get("sampler"),
        steps=asked.get("num_inference_steps", asked.get("steps")),
        guidance_scale=asked.get("guidance_scale"),
        eta=asked.get("eta"),
        seed=asked["seed"] if "seed" in asked else seed_of(row.id),
        options=options,
        lora=asked.get("lora") or None,
        id=row.id,
    )


def present(value: Any) -> Any:
    """A value as it is; NaN, which tables of floats have for what is left out, as None."""
    return None if isinstance(value, float) and math.isnan(value) else value


def _text(name: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(f"{name} must be a text, got {brief(value)}")
    return str(value)


def _whole(name: str, value: Any) -> int:
    try:
        if not isinstance(value, bool) and isinstance(value, int | str):
            return int(value)
        if isinstance(value, float) and value.is_integer():
            return int(value)
    except ValueError:
        pass
    raise ValueError(f"{name} must be a whole number, got {brief(value)}")


def _number(name: str, value: Any) -> float:
    try:
        if not isinstance(value, bool) and isinstance(value, int | float | str):
            return float(value)
    except (ValueError, OverflowError):
        pass
    raise ValueError(f"{name} must be a number, got {brief(value)}")


def _object(name: str, value: Any) -> dict[str, Any]:
    try:
        found = parse_json(value.encode()) if isinstance(value, str) else value
    except ValueError as error:
        raise ValueError(f"{name} must be an object, as JSON, got {brief(value)}: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{name} must be an object, got {brief(value)}")
    return {key: one for key, one in found.items() if one is not None}  # a struct of parquet has all names in all rows


#: What reads a value of each column.
COLUMNS: Mapping[str, Callable[[str, Any], Any]] = {
    "id": _text,
    "prompt": _text,
    "negative_prompt": _text,
    "size": _text,
    "num_inference_steps": _whole,
    "steps": _whole,
    "guidance_scale": _number,
    "eta": _number,
    "seed": _whole,
    "sampler": _text,
    "sampler_options": _object,
    "lora": _object,
}
