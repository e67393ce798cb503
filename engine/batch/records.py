"""What is recorded of a row: what draws its picture again, or why there is none."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from stepfuse.batch.rows import Row, present
from stepfuse.extras import pip_install
from stepfuse.requests.prompt_request import PromptRequest

#: Entries of a record by the type of their column in a parquet file, in the order in which they are written.
TYPES = {
    "id": "string",
    "prompt": "string",
    "negative_prompt": "string",
    "size": "string",
    "sampler": "string",
    "steps": "int64",
    "guidance_scale": "float64",
    "eta": "float64",
    "sampler_options": "string",
    "lora": "string",
    "seed": "uint64",
    "model": "string",
    "digest": "string",
    "error": "string",
}


@dataclass(frozen=True)
class Drawn:
    """A row's picture, or why there is none.

    Attributes:
        record: Its entries: ``TYPES``, and what of the row is kept.
        image: The picture's file; None where there is none, or where it has been put into its place already.
    """

    record: dict[str, Any]
    image: bytes | None = None

    @property
    def error(self) -> str | None:
        """Why there is no picture."""
        error: str | None = self.record["error"]
        return error


def record_of(
    row: Row, request: PromptRequest | None, keep: Collection[str], *, error: str | None = None, **drawn: Any
) -> dict[str, Any]:
    """The record of a row.

    Args:
        row: The row.
        request: What it asks for; None where that was refused, so that its values may be any.
        keep: Columns of the row that are kept.
        error: Why there is no picture.
        **drawn: How it was drawn (``ServedModel.drawn``), in the place of what was asked for.
    """
    asked: dict[str, Any] = {}
    if request is not None:
        own = ("prompt", "negative_prompt", "sampler", "steps", "guidance_scale", "eta", "seed")
        asked = {name: getattr(request, name) for name in own}
        asked["sampler_options"] = dict(request.options) or None
        asked["lora"] = dict(request.lora or {}) or None
    asked |= {"id": row.id, "error": error, **drawn}
    return {**{name: asked.get(name) for name in TYPES}, **{name: present(row.fields.get(name)) for name in keep}}


def arrow_table(drawn: Sequence[Drawn], **columns: tuple[str, Sequence[Any]]) -> Any:
    """Records and images as a ``pyarrow.Table``: columns of the same types whatever the rows are.

    Args:
        drawn: A row each.
        **columns: More columns by name, the type and the values of each.

    Raises:
        ImportError: If pyarrow is missing.
    """
    try:
        import pyarrow as pa
    except ModuleNotFoundError as error:
        raise ImportError(f"parquet needs {error.name}: {pip_install('ray')}") from error
    found = {name: pa.array(values, type) for name, (type, values) in columns.items()}
    for name, type in TYPES.items():
        values = [one.record.get(name) for one in drawn]  # records of an earlier release have no LoRAs
        if name in ("sampler_options", "lora"):
            values = [None if one is None else json.dumps(one) for one in values]
        found[name] = pa.array(values, type)
    found["image"] = pa.array([one.image for one in drawn], pa.binary())
    return pa.table(found)
